"""One HTTP request and its answer, sans-IO: reads with their arrival stamps in, a finished record out.

Each read keeps its own stamp. When several events lie in one read, the stamp belongs to the last of them; the earlier
ones are counted in `coalesced_count`, and the distance to the previous read bounds their error. That touches a latency
only when the first token is among them: the last token is always the one stamped.

Nearly all reads of a stream are one chunk with one event that differs from the last one in a few letters. `take` knows
these by their beginning and end (targets.template) and then neither the HTTP parser nor the JSON decoder sees them;
everything else goes through both. The short way is only open between two chunks and between two events, so both parsers
are always in the state they would be in had they seen everything.
"""

import math
import re
from array import array
from email.utils import parsedate_to_datetime
from typing import Any

import httptools
import msgspec

from pinchpoint.schedule import ScheduledRequest
from pinchpoint.targets.ndjson import NdjsonParser
from pinchpoint.targets.sse import SseOverflowError, SseParser
from pinchpoint.targets.target import Chunk, Target, Usage
from pinchpoint.targets.template import PLAIN, is_plain

MAX_PLAIN_BODY_BYTES = 8 << 20
"""Bodies that are not streams are kept up to this size; the rest is counted and thrown away."""
MAX_HEAD_BYTES = 64 << 10
"""Common servers and proxies refuse more; a service that sends headers or trailers without end must not fill our
memory."""
REJECTED_STATUSES = (429, 503)
ERROR_TEXT_CHARS = 300
FINISH_REASON_CHARS = 64
"""Of what the service calls its finish reason; the longest in use has 14."""
HTTP_INTERIM, HTTP_OK = 100, 200
TEMPLATES_MAX = 16
"""Per stream: one each for reasoning and content are usual. An answer without a pattern is not searched for one."""
MISSES_BEFORE_RELEARNING = 2
HTTP_REDIRECT = 300
HTTP_CLIENT_ERROR = 400
CRLF = b"\r\n"
PUT_BY_MAX = 64
PUT_BY_SPREAD = 48
"""Streams that began together are looked at after different numbers of reads, or all would be at one time."""
EVENT_END = b"\n\n\r\n"
"""How a read of a stream ends before its tokens are known: a blank line, and the end of the chunk."""
END_OF_HEAD = CRLF + CRLF
STREAM_SIGNS = (b"data:", b"event:", b": ")
"""How a stream begins that is declared as something else."""
STREAM_END = b"[DONE]"
NDJSON_TYPES = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/jsonlines")
"""Content types under which services send one JSON object per line. None is registered."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
NO_HEAD = b"\x00"
"""Stands for "no chunk header fits to a read of this length"; no read begins like it."""


class _UnaskedAnswerError(Exception):
    """Stops the HTTP parser, which hands it on as one of its own errors."""


class Exchange:
    """State of one request in flight. Instants are None until they happened.

    `sent_ns` is when the loop took it to the network: wrote it to a kept connection, or began to connect. A service
    that accepts late, shakes hands slowly or refuses is thus not taken for a generator that sends late or not at all.
    """

    __slots__ = (
        "_at_boundary",
        "_bare_bytes",
        "_body",
        "_body_length",
        "_content_encoding",
        "_content_type",
        "_date",
        "_events_in_read",
        "_heads",
        "_http",
        "_last_stamp_ns",
        "_misses",
        "_prefix",
        "_put_by",
        "_put_by_max",
        "_reader",
        "_retry_after",
        "_says_content",
        "_sniffed",
        "_sse",
        "_stamp_ns",
        "_stamps",
        "_tail",
        "_templates_left",
        "_texts",
        "_token_end",
        "attempts",
        "backend",
        "bytes_in",
        "check_ns",
        "chunk_ns",
        "chunked",
        "coalesced_count",
        "coalesced_error_ns",
        "complete",
        "connect_ns",
        "connected_ns",
        "connection",
        "connection_id",
        "end_ns",
        "error",
        "finish_reason",
        "first_byte_ns",
        "first_content_ns",
        "first_token_error_ns",
        "first_token_ns",
        "headers_ns",
        "http_status",
        "input_tokens",
        "keep_alive",
        "phase",
        "reads",
        "retry_after_s",
        "row",
        "saw_done",
        "scheduled_ns",
        "sent_ns",
        "shared_tokens",
        "slot",
        "stage",
        "stamp_error_ns",
        "stamps_user",
        "status",
        "stream",
        "tls_ns",
        "usage",
    )

    stamps_bounded = True
    """Whether it is known how far off a stamp can be."""

    def __init__(self, row: ScheduledRequest, scheduled_ns: int, reader: Target, *, keep_text: bool = False) -> None:
        """keep_text: `text` is wanted once the answer has ended."""
        self.row = row
        self.stage = row.stage
        self.scheduled_ns = scheduled_ns
        self.slot: Any = None
        """The closed loop's slot that waits for it, if any. The loop's business."""
        self.connection: Any = None
        """What carries it at the moment. The loop's business, too."""
        self.attempts = 0
        self.backend = 0
        self.input_tokens = row.input_tokens
        """Of the whole request as it was planned: with history, and with what the service adds as far as known."""
        self.shared_tokens = 0
        """Of these, what other requests begin with too."""
        self.check_ns = 0
        """When the loop has to look at its timeouts again."""
        self.sent_ns: int | None = None
        self.connect_ns: int | None = None
        self.tls_ns: int | None = None
        self.connected_ns: int | None = None
        self.connection_id: int | None = None
        self.headers_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.first_token_ns: int | None = None
        self.first_content_ns: int | None = None
        self.end_ns: int | None = None
        self.chunk_ns: array[int] = array("q")
        self._put_by: list[bytes] | None = []
        """Reads that were not looked at yet; None while all must be looked at as they come."""
        self._put_by_max = PUT_BY_MAX
        self._token_end = EVENT_END
        self._stamps: array[int] = array("q")
        """Their stamps."""
        self.coalesced_count = 0
        self.coalesced_error_ns = 0
        self.first_token_error_ns = 0
        self.stamp_error_ns = 0
        self.reads = 0
        """Reads that took the long way; with the short way's, one for each of `chunk_ns` at most."""
        self.stamps_user = 0
        self.bytes_in = 0
        self.http_status: int | None = None
        self.retry_after_s: float | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.saw_done = False
        self.stream = False
        self.chunked = False
        self.keep_alive = True
        self.complete = False
        """The HTTP message has ended and the connection is ready for the next request, if `keep_alive`."""
        self.status: str | None = None
        self.phase: str | None = None
        self.error: str | None = None
        self._reader = reader
        self._texts: list[bytes] | None = [] if keep_text else None
        """Pieces of the answer as they stand in JSON strings."""
        self._says_content = False
        """Whether events that fit the template carry content, and no thinking."""
        self._sse: SseParser | NdjsonParser | None = None
        self._sniffed = False
        """The body's beginning was looked at, and is no event stream's."""
        self._bare_bytes = 0
        """Read since the last byte of a body: headers, trailers, chunk extensions."""
        self._body = bytearray()
        self._body_length: int | None = None
        self._content_encoding = self._content_type = self._date = self._retry_after = b""
        self._stamp_ns = 0
        self._last_stamp_ns = 0
        self._events_in_read = 0
        self._at_boundary = False
        self._heads: dict[int, bytes] | None = None
        """Length of a read -> chunk header and template's beginning; None while the short way is closed."""
        self._prefix = self._tail = b""
        self._templates_left = TEMPLATES_MAX
        self._misses = MISSES_BEFORE_RELEARNING
        self._http: Any = httptools.HttpResponseParser(self)

    # -- called by the socket loop ---------------------------------------------------------------------------------

    def take(self, data: bytes, stamp_ns: int) -> bool:
        """One read. True when the answer has ended, well or not.

        Reads that end like a token are only put by, and looked at many at a time: that keeps the loop's way short, also
        when the first tokens of many answers come at once, and the parser's memory warm. A read that may be the end of
        the answer does not end like a token, however the last chunk is written or cut (RFC 9112, section 7.1: it may
        have extensions and trailers).
        """
        put_by = self._put_by
        if put_by is not None and data.endswith(self._token_end):
            put_by.append(data)
            self._stamps.append(stamp_ns)
            return len(put_by) >= self._put_by_max and self.catch_up()
        if put_by and self.catch_up():
            return True
        return self._take_any(data, stamp_ns)

    def catch_up(self) -> bool:
        """Looks at the reads that were put by. True when the answer has ended."""
        reads, stamps = self._put_by, self._stamps
        if not reads:
            return False
        self._put_by, self._stamps = [], array("q")
        self._put_by_max = PUT_BY_MAX - (self.row.request_id + len(self.chunk_ns)) % PUT_BY_SPREAD
        append = self.chunk_ns.append
        known, tail = self._heads, self._tail
        texts = self._texts
        last_ns = self._latest_ns or 0
        for data, read_ns in zip(reads, stamps, strict=True):
            # Two reads of one segment have one stamp, and the clock's offset may have been measured anew between them.
            stamp_ns = last_ns = read_ns if read_ns > last_ns else last_ns
            if known is not None:
                head = known.get(len(data)) or self._head_of(len(data))
                if data.startswith(head) and data.endswith(tail):
                    text = data[len(head) : -len(tail)]
                    if text and (not text.translate(None, PLAIN) or is_plain(text)):
                        self.bytes_in += len(data)
                        append(stamp_ns)
                        self._misses = 0
                        if texts is not None and self._says_content:
                            texts.append(text)
                        continue
            if self._take_any(data, stamp_ns):
                return True
            known, tail = self._heads, self._tail
        return False

    @property
    def unread(self) -> bool:
        """Whether a first token may have come that nobody has looked at."""
        return self.first_token_ns is None and len(self._stamps) > 0

    @property
    def tokens_seen(self) -> int:
        """Events with text so far; of the reads that were put by each counts as one."""
        return len(self.chunk_ns) + len(self._stamps)

    @property
    def latest_ns(self) -> int | None:
        """Stamp of the last read that carried text, or was put by as if it did; None before the first."""
        if self._stamps:
            return self._stamps[-1]
        return self.chunk_ns[-1] if self.chunk_ns else None

    def closed(self, now_ns: int) -> None:
        """The peer closed the connection."""
        self.catch_up()
        if self.complete or self.status is not None:
            return
        self.keep_alive = False
        if self.http_status is None:
            self.fail("transport_error", "the connection was closed before an answer", "headers")
        elif self.chunked or self._missing_length():
            self.end_ns = self.end_ns or self._latest_ns or now_ns
            self._settle(cut_off=True)
        else:  # no length and not chunked: the close is the end of the body
            self._finish(self._latest_ns or now_ns)

    def fail(self, status: str, error: str, phase: str | None = None) -> None:
        """Ends the exchange without a whole answer; the connection cannot be used again."""
        self.catch_up()
        if self.status is None:
            self.status = status
            self.phase = phase
            self.error = error[:ERROR_TEXT_CHARS]
        self.keep_alive = False

    def release(self) -> None:
        """Lets go of the parsers. One refers back to the exchange, and nobody collects such cycles under load."""
        self._http = self._sse = None

    @property
    def last_token_ns(self) -> int | None:
        return self.chunk_ns[-1] if self.chunk_ns else None

    @property
    def text(self) -> str:
        """The answer, without the thinking before it; of an exchange that keeps it."""
        return msgspec.json.decode(b'"' + b"".join(self._texts or ()) + b'"', type=str)

    @property
    def _latest_ns(self) -> int:
        """Stamp of the latest read, whichever way it took; 0 before the first."""
        return max(self._last_stamp_ns, self.chunk_ns[-1] if self.chunk_ns else 0)

    # -- reads ------------------------------------------------------------------------------------------------------

    def _take_any(self, data: bytes, stamp_ns: int) -> bool:
        self.reads += 1
        self.bytes_in += len(data)
        previous_ns = self._latest_ns or stamp_ns
        stamp_ns = max(stamp_ns, previous_ns)
        self._last_stamp_ns = self._stamp_ns = stamp_ns
        self._events_in_read = 0
        was_open = self._at_boundary
        position = self._take_known(data, stamp_ns) if self._heads is not None else 0
        if position < len(data):
            self._misses += 1
            self._feed(data[position:] if position else data)
            self._at_boundary = self._at_boundary and data.endswith(CRLF) and self._sse is not None and self._sse.idle
            self._at_boundary = self._at_boundary and not self.saw_done
            if not self._at_boundary:
                self._heads = None
            elif self._tail and self._misses <= MISSES_BEFORE_RELEARNING:
                self._heads = {} if self._heads is None else self._heads
            elif self._events_in_read:
                self._learn(data, 0 if was_open else data.find(END_OF_HEAD) + len(END_OF_HEAD))
        if self._events_in_read > 1:
            self.coalesced_count += self._events_in_read - 1
            gap_ns = stamp_ns - previous_ns
            self.coalesced_error_ns = max(self.coalesced_error_ns, gap_ns)
            if len(self.chunk_ns) == self._events_in_read:
                self.first_token_error_ns = gap_ns
        ended = self.complete or self.status is not None
        if self._heads is None or ended:
            self._put_by = None
        else:
            self._token_end = self._tail
            if self._put_by is None:
                self._put_by = []
        return ended

    def _feed(self, data: bytes) -> None:
        self._bare_bytes += len(data)
        try:
            self._http.feed_data(data)
        except httptools.HttpParserError as error:
            if self.complete:
                self.keep_alive = False
            else:
                self.fail("malformed", f"answer is not HTTP/1.1 ({clean(str(error))})")
            return
        except httptools.HttpParserUpgrade:
            self.http_status = self._http.get_status_code()
            self.fail("malformed", f"HTTP {self.http_status}: the service switches to a protocol nobody asked for")
            return
        if self._bare_bytes > MAX_HEAD_BYTES and not self.complete:
            self.fail("malformed", f"the headers of the answer exceed {MAX_HEAD_BYTES >> 10} KiB")

    def _take_known(self, data: bytes, stamp_ns: int) -> int:
        """Takes whole chunks that fit the template from the beginning of a read; returns how far it came."""
        position, end, prefix, tail = 0, len(data), self._prefix, self._tail
        skip, cut = len(prefix), len(tail)
        while position < end:
            line = data.find(CRLF, position, position + 10)
            if line < 0:
                break
            size_text = data[position:line]
            try:
                size = int(size_text, 16)
            except ValueError:
                break
            start = line + len(CRLF)
            after = start + size + len(CRLF)
            text = data[start + skip : after - cut]
            if (
                after > end
                or b"%x" % size != size_text
                or not text
                or not data.startswith(prefix, start)
                or not data.startswith(tail, after - cut)
                or not is_plain(text)
            ):
                break
            self._events_in_read += 1
            self.chunk_ns.append(stamp_ns)
            if self._texts is not None and self._says_content:
                self._texts.append(text)
            position = after
        return position

    def _head_of(self, length: int) -> bytes:
        """How a read of this length begins when it is one chunk that fits the template."""
        assert self._heads is not None
        head = NO_HEAD
        for digits in range(1, 9):
            size = length - digits - 2 * len(CRLF)
            if size > 0 and len(b"%x" % size) == digits:
                head = b"%x\r\n" % size + self._prefix
        self._heads[length] = head
        return head

    def _learn(self, data: bytes, position: int) -> None:
        """Tries to make a template of the last chunk of a read. `position`: where its first whole chunk begins."""
        self._heads, self._tail = None, b""
        if self._templates_left == 0:
            return
        self._templates_left -= 1
        payload = b""
        while position < len(data):
            line = data.find(CRLF, position)
            try:
                size = int(data[position:line], 16)
            except ValueError:  # the read began inside of a chunk
                return
            payload = data[line + len(CRLF) : line + len(CRLF) + size]
            position = line + size + 2 * len(CRLF)
        found = self._reader.template(payload) if position == len(data) else None
        if found is not None:
            self._prefix, self._tail = found[0], found[1] + CRLF
            self._says_content = self._texts is not None and self._is_content(found[0] + b"x" + found[1])
            self._heads = {}
            self._misses = 0

    def _is_content(self, event: bytes) -> bool:
        assert self._sse is not None
        return any(self._reader.parse_event(*one).content for one in type(self._sse)().feed(event))

    # -- httptools callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer to one request: it belongs to nothing, and must not change this one
            raise _UnaskedAnswerError

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self._content_type = value.lower().partition(b";")[0].strip()
            self.stream = self._content_type == b"text/event-stream"
        elif lowered == b"transfer-encoding":
            self.chunked = b"chunked" in value.lower()
        elif lowered == b"content-length":
            self._body_length = int(value) if value.isdigit() else None
        elif lowered == b"content-encoding":
            self._content_encoding = value.strip().lower()
        elif lowered == b"date":
            self._date = value
        elif lowered == b"retry-after":
            self._retry_after = value

    def on_headers_complete(self) -> None:
        self.http_status = self._http.get_status_code()
        self.headers_ns = self._stamp_ns
        self.keep_alive = self._http.should_keep_alive()
        if self._retry_after:
            self.retry_after_s = _retry_after_s(self._retry_after.decode("latin-1"), self._date.decode("latin-1"))
        if self.http_status != HTTP_OK:
            return
        if self.stream:
            self._sse = SseParser()
        elif self._content_type in NDJSON_TYPES or (self._reader.stream and self._reader.framing == "ndjson"):
            self.stream, self._sse = True, NdjsonParser()

    def on_chunk_header(self) -> None:
        self._at_boundary = False

    def on_chunk_complete(self) -> None:
        self._at_boundary = True

    def on_body(self, body: bytes) -> None:
        self._bare_bytes = 0
        if self.first_byte_ns is None:
            self.first_byte_ns = self._stamp_ns
        if self._sse is None:
            if len(self._body) < MAX_PLAIN_BODY_BYTES:
                self._body += body
            if self._sniffed or self.http_status != HTTP_OK or not self._is_stream():
                return
            body = bytes(self._body)
            self.stream, self._sse = True, SseParser()
        try:
            for event, data in self._sse.feed(body):
                self._on_event(event, data)
        except SseOverflowError as error:
            self.fail("malformed", str(error))

    def _is_stream(self) -> bool:
        """Whether the body so far begins like an event stream, whatever it is declared as."""
        if self._body.startswith(STREAM_SIGNS):
            return True
        self._sniffed = not any(sign.startswith(self._body) for sign in STREAM_SIGNS)
        return False

    def on_message_complete(self) -> None:
        if self.http_status is not None and HTTP_INTERIM <= self.http_status < HTTP_OK:
            self.http_status = None  # 100 Continue: the real answer follows
            return
        self._finish(self._stamp_ns)

    # -- meaning ---------------------------------------------------------------------------------------------------

    def _on_event(self, event: bytes, data: bytes) -> None:
        if self.saw_done:
            return  # clients stop reading here; what follows reaches nobody
        try:
            chunk = self._reader.parse_event(event, data)
        except ValueError as error:
            self._note_error("malformed", str(error))
            return
        if chunk.error is not None:
            self._note_error("stream_error", chunk.error)
        if chunk.done:
            self.saw_done = True
        if chunk.finish_reason is not None:
            self.finish_reason = _finish_reason(chunk)
        if chunk.usage is not None:
            self.usage = _merged(self.usage, chunk.usage)
        if chunk.text:
            self._keep(chunk.text)
        if chunk.has_text:
            self._events_in_read += 1
            self.chunk_ns.append(self._stamp_ns)
            if self.first_token_ns is None:
                self.first_token_ns = self._stamp_ns
            if self.first_content_ns is None and chunk.content:
                self.first_content_ns = self._stamp_ns

    def _keep(self, text: str) -> None:
        if self._texts is not None:
            self._texts.append(msgspec.json.encode(text.encode("utf-8", "replace").decode())[1:-1])

    def _note_error(self, status: str, error: str) -> None:
        """An error inside a stream; reading goes on to its end so that the connection stays usable."""
        if self.error is None:
            self.error = f"{status}: {clean(error)}"[:ERROR_TEXT_CHARS]

    def _missing_length(self) -> bool:
        return self._body_length is not None and len(self._body) < self._body_length

    def _finish(self, end_ns: int) -> None:
        self.end_ns = end_ns
        self.complete = True
        for event, data in self._sse.end() if self._sse is not None else ():
            self._on_event(event, data)
        self._settle(cut_off=False)

    def _settle(self, *, cut_off: bool) -> None:
        """Decides the status of an answer that has ended."""
        if self.status is not None:
            return
        code = self.http_status or 0
        if code in REJECTED_STATUSES:
            self.status, self.error = "rejected", self._body_error()
        elif code >= 400 or code < 200 or code >= 300:
            self.status, self.error = "http_error", self._body_error()
        elif self._content_encoding not in (b"", b"identity"):
            encoding = clean(self._content_encoding.decode("latin-1"))
            self.status, self.error = "malformed", f"the answer is compressed ({encoding}), which was not asked for"
        elif self.error is not None:
            self.status, _, self.error = self.error.partition(": ")
        elif cut_off:
            self.status, self.error = "truncated", "the connection closed in the middle of the answer"
            self.keep_alive = False
        elif self._sse is not None:
            self._settle_stream(self._sse)
        else:
            self._settle_plain()

    def _settle_stream(self, sse: SseParser | NdjsonParser) -> None:
        if self.first_byte_ns is not None and not sse.recognised:
            self.status, self.error = "malformed", "the answer is declared as an event stream and is none"
        elif not self._reader.needs_finish and not self.chunk_ns:
            self.status, self.error = "truncated", "the stream ended without any text"
        elif self._reader.needs_finish and self.finish_reason is None and not (self.saw_done and self.chunk_ns):
            self.status, self.error = "truncated", "the stream ended without a finish reason or an end mark"
        elif sse.pending and sse.unfinished != STREAM_END:  # some leave out the blank line behind the last event
            self.status, self.error = "truncated", "the stream ended inside an event"
        else:
            self.status = "ok"

    def _settle_plain(self) -> None:
        try:
            chunk = self._reader.parse_answer(bytes(self._body))
        except ValueError as error:
            self.status, self.error = "malformed", clean(str(error))
            return
        self.usage, self.finish_reason = chunk.usage, _finish_reason(chunk)
        self._keep(chunk.text)
        self.status = "ok"
        if chunk.error is not None:
            self.status, self.error = "stream_error", clean(chunk.error)

    def _body_error(self) -> str:
        try:
            text = self._reader.parse_answer(bytes(self._body)).error
        except ValueError:
            text = None
        if not text:  # no complaint in the API's form, or one that reads like an answer
            text = bytes(self._body[:ERROR_TEXT_CHARS]).decode("utf-8", "replace")
        if HTTP_REDIRECT <= (self.http_status or 0) < HTTP_CLIENT_ERROR:
            text = f"redirects are not followed; give the final URL. {text}"
        return f"HTTP {self.http_status}: {clean(text)}"[:ERROR_TEXT_CHARS]


def _merged(before: Usage | None, latest: Usage) -> Usage:
    """What is told later counts; what is not told then is kept."""
    if before is None:
        return latest
    told = {name: value for name in Usage.__struct_fields__ if (value := getattr(latest, name)) is not None}
    return msgspec.structs.replace(before, **told)


def _retry_after_s(value: str, date: str) -> float | None:
    """Seconds, or a date (RFC 9110, section 10.2.3) less the answer's own, so that no clock of ours is asked."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = max(0.0, (parsedate_to_datetime(value) - parsedate_to_datetime(date)).total_seconds())
        except (ValueError, TypeError):  # one of them is no date, or has no time zone
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _finish_reason(chunk: Chunk) -> str | None:
    return clean(chunk.finish_reason)[:FINISH_REASON_CHARS] if chunk.finish_reason is not None else None


def clean(text: str) -> str:
    """Server text without control characters, so that it can do nothing in a terminal or a log."""
    return _CONTROL.sub(" ", text).strip()
