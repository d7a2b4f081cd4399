"""One HTTP request and its answer, sans-IO: reads with their arrival stamps in, a finished record out.

The socket loop only appends `(bytes, stamp)` pairs. Parsing happens in `advance`, which the loop calls when an answer
may have ended or when it has nothing better to do, so that decoding JSON never delays the next read. Because each read
keeps its own stamp, parsing late does not change any instant.

When several events lie in one read, the stamp belongs to the last of them; the earlier ones are counted in
`coalesced_count`, and the distance to the previous read bounds their error. That touches a latency only when the first
token is among them: the last token is always the one stamped.
"""

import math
import re
from typing import Any, Protocol

import httptools

from pinchpoint.targets.openai import Chunk, Usage
from pinchpoint.targets.sse import SseOverflowError, SseParser

MAX_PLAIN_BODY_BYTES = 8 << 20
"""Bodies that are not streams are kept up to this size; the rest is counted and thrown away."""
LAST_CHUNK = b"0\r\n\r\n"
"""End of a chunked body (RFC 9112, section 7.1). A read shorter than that may be the rest of one that was split."""
REJECTED_STATUSES = (429, 503)
ERROR_TEXT_CHARS = 300
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class _UnaskedAnswerError(Exception):
    """Stops the HTTP parser, which hands it on as one of its own errors."""


class Reader(Protocol):
    """The part of a target that reads answers."""

    def parse_event(self, event: bytes, data: bytes) -> Chunk: ...
    def parse_answer(self, body: bytes) -> Chunk: ...


class Exchange:
    """State of one request in flight. Instants are None until they happened.

    `sent_ns` is when the loop took it to the network: wrote it to a kept connection, or began to connect. A service
    that accepts late, shakes hands slowly or refuses is thus not taken for a generator that sends late or not at all.
    """

    __slots__ = (
        "_body",
        "_body_length",
        "_current_stamp_ns",
        "_events_in_read",
        "_http",
        "_last_stamp_ns",
        "_previous_stamp_ns",
        "_reader",
        "_reads",
        "_sse",
        "bytes_in",
        "chunk_ns",
        "chunked",
        "coalesced_count",
        "coalesced_error_ns",
        "complete",
        "connected_ns",
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
        "keep_alive",
        "retry_after_s",
        "row",
        "saw_done",
        "scheduled_ns",
        "sent_ns",
        "stamp_error_ns",
        "stamps_kernel",
        "stamps_user",
        "status",
        "stream",
        "usage",
    )

    def __init__(self, row: Any, scheduled_ns: int, reader: Reader) -> None:
        self.row = row
        self.scheduled_ns = scheduled_ns
        self.sent_ns: int | None = None
        self.connected_ns: int | None = None
        self.connection_id: int | None = None
        self.headers_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.first_token_ns: int | None = None
        self.first_content_ns: int | None = None
        self.end_ns: int | None = None
        self.chunk_ns: list[int] = []
        self.coalesced_count = 0
        self.coalesced_error_ns = 0
        self.first_token_error_ns = 0
        self.stamp_error_ns = 0
        self.stamps_kernel = 0
        self.stamps_user = 0
        self.bytes_in = 0
        self.http_status: int | None = None
        self.retry_after_s: float | None = None
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.saw_done = False
        self.stream = False
        self.chunked: bool | None = None
        self.keep_alive = True
        self.complete = False
        """The HTTP message has ended and the connection is ready for the next request, if `keep_alive`."""
        self.status: str | None = None
        self.error: str | None = None
        self._reader = reader
        self._reads: list[tuple[bytes, int]] = []
        self._sse = SseParser()
        self._body = bytearray()
        self._body_length: int | None = None
        self._current_stamp_ns = 0
        self._last_stamp_ns = 0
        self._previous_stamp_ns = 0
        self._events_in_read = 0
        self._http = httptools.HttpResponseParser(self)

    # -- called by the socket loop ---------------------------------------------------------------------------------

    def receive(self, data: bytes, stamp_ns: int) -> bool:
        """Keeps one read. True when the caller should call `advance` now, because the answer may have ended."""
        self._reads.append((data, stamp_ns))
        self.bytes_in += len(data)
        return self.chunked is not True or data.endswith(LAST_CHUNK) or len(data) < len(LAST_CHUNK)

    def advance(self) -> None:
        """Parses what was received so far. Sets `complete` when the answer has ended, `status` on a broken one."""
        reads, self._reads = self._reads, []
        for data, stamp_ns in reads:
            self._previous_stamp_ns = self._last_stamp_ns or stamp_ns
            self._last_stamp_ns = self._current_stamp_ns = stamp_ns
            self._events_in_read = 0
            try:
                self._http.feed_data(data)
            except httptools.HttpParserError as error:
                if self.complete:
                    self.keep_alive = False
                    return
                self.fail("transport_error", f"answer is not HTTP/1.1 ({_clean(str(error))})")
                return
            if self._events_in_read > 1:
                self.coalesced_count += self._events_in_read - 1
                gap_ns = stamp_ns - self._previous_stamp_ns
                self.coalesced_error_ns = max(self.coalesced_error_ns, gap_ns)
                if len(self.chunk_ns) == self._events_in_read:
                    self.first_token_error_ns = gap_ns
            if self.complete or self.status is not None:
                return

    def closed(self, now_ns: int) -> None:
        """The peer closed the connection."""
        self.advance()
        if self.complete or self.status is not None:
            return
        self.keep_alive = False
        if self.http_status is None:
            self.fail("transport_error", "the connection was closed before an answer")
        elif self.chunked or self._missing_length():
            self.end_ns = self.end_ns or self._last_stamp_ns or now_ns
            self._settle(cut_off=True)
        else:  # no length and not chunked: the close is the end of the body
            self._finish(self._last_stamp_ns or now_ns)

    def fail(self, status: str, error: str) -> None:
        """Ends the exchange without a whole answer; the connection cannot be used again."""
        if self.status is None:
            self.status = status
            self.error = error[:ERROR_TEXT_CHARS]
        self.keep_alive = False

    # -- httptools callbacks ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:  # a second answer to one request: it belongs to nothing, and must not change this one
            raise _UnaskedAnswerError

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        if lowered == b"content-type":
            self.stream = value.lower().startswith(b"text/event-stream")
        elif lowered == b"transfer-encoding":
            self.chunked = b"chunked" in value.lower()
        elif lowered == b"content-length":
            self._body_length = int(value) if value.isdigit() else None
        elif lowered == b"retry-after":
            try:
                seconds = float(value)
            except ValueError:  # it may be a date
                return
            self.retry_after_s = seconds if math.isfinite(seconds) and seconds >= 0 else None

    def on_headers_complete(self) -> None:
        self.http_status = self._http.get_status_code()
        self.headers_ns = self._current_stamp_ns
        self.keep_alive = self._http.should_keep_alive()
        self.chunked = bool(self.chunked)

    def on_body(self, body: bytes) -> None:
        if self.first_byte_ns is None:
            self.first_byte_ns = self._current_stamp_ns
        if not (self.stream and self.http_status == 200):
            if len(self._body) < MAX_PLAIN_BODY_BYTES:
                self._body += body
            return
        try:
            for event, data in self._sse.feed(body):
                self._on_event(event, data)
        except SseOverflowError as error:
            self.fail("stream_error", str(error))

    def on_message_complete(self) -> None:
        if self.http_status is not None and self.http_status < 200:
            self.http_status = None  # 100 Continue: the real answer follows
            return
        self._finish(self._current_stamp_ns)

    # -- meaning ---------------------------------------------------------------------------------------------------

    def _on_event(self, event: bytes, data: bytes) -> None:
        try:
            chunk = self._reader.parse_event(event, data)
        except ValueError as error:
            self._note_error("stream_error", str(error))
            return
        if chunk.error is not None:
            self._note_error("stream_error", chunk.error)
        if chunk.done:
            self.saw_done = True
        if chunk.finish_reason is not None:
            self.finish_reason = chunk.finish_reason
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.has_text:
            self._events_in_read += 1
            self.chunk_ns.append(self._current_stamp_ns)
            if self.first_token_ns is None:
                self.first_token_ns = self._current_stamp_ns
            if self.first_content_ns is None and chunk.content:
                self.first_content_ns = self._current_stamp_ns

    def _note_error(self, status: str, error: str) -> None:
        """An error inside a stream; reading goes on to its end so that the connection stays usable."""
        if self.error is None:
            self.error = f"{status}: {_clean(error)}"[:ERROR_TEXT_CHARS]

    def _missing_length(self) -> bool:
        return self._body_length is not None and len(self._body) < self._body_length

    def _finish(self, end_ns: int) -> None:
        self.end_ns = end_ns
        self.complete = True
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
        elif self.error is not None:
            self.status = "stream_error"
        elif cut_off:
            self.status, self.error = "truncated", "the connection closed in the middle of the answer"
            self.keep_alive = False
        elif self.stream:
            self._settle_stream()
        else:
            self._settle_plain()

    def _settle_stream(self) -> None:
        if self.finish_reason is None and not (self.saw_done and self.chunk_ns):
            self.status, self.error = "truncated", "the stream ended without a finish reason or [DONE]"
        elif self._sse.pending:
            self.status, self.error = "truncated", "the stream ended inside an event"
        else:
            self.status = "ok"

    def _settle_plain(self) -> None:
        try:
            chunk = self._reader.parse_answer(bytes(self._body))
        except ValueError as error:
            self.status, self.error = "stream_error", _clean(str(error))
            return
        self.usage, self.finish_reason = chunk.usage, chunk.finish_reason
        self.status = "ok"
        if chunk.error is not None:
            self.status, self.error = "stream_error", _clean(chunk.error)

    def _body_error(self) -> str:
        try:
            chunk = self._reader.parse_answer(bytes(self._body))
            text = chunk.error or ""
        except ValueError:
            text = bytes(self._body[:ERROR_TEXT_CHARS]).decode("utf-8", "replace")
        return f"HTTP {self.http_status}: {_clean(text)}"[:ERROR_TEXT_CHARS]


def _clean(text: str) -> str:
    """Server text without control characters, so that it can do nothing in a terminal or a log."""
    return _CONTROL.sub(" ", text).strip()
