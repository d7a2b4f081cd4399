"""Server-sent events, sans-IO: bytes in any split -> whole events.

Follows the WHATWG event-stream grammar: lines end with CRLF, LF or CR (also mixed), a blank line ends an event, a
leading byte-order mark is dropped, comment lines are dropped, several `data` lines are joined by LF.
"""

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
DATA, END = b"data: ", b"\n\n"
FIELDS = (b"data", b"event", b"id", b"retry", b"", b"error")
"""Names of fields; without a name, a line is a comment."""
ERROR_FIELD = b"error"
"""No field of the grammar, but llama.cpp's server reports errors in it; taken for `event: error` with that data."""
MAX_EVENT_BYTES = 8 << 20
"""An event that never ends must not grow memory without bound. 8 MiB is far above any single delta."""


class SseOverflowError(ValueError):
    """The stream holds an event larger than MAX_EVENT_BYTES."""


class SseParser:
    """feed() returns the events completed by the new bytes, as (event type or b"", data)."""

    def __init__(self) -> None:
        self.recognised = False
        """Whether anything so far belongs to the grammar: a known field or a comment. False: it is something else."""
        self._buffer = bytearray()
        self._event = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._started = False

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        if self._started and data.startswith(DATA) and data.endswith(END) and self.idle:
            rest = data[len(DATA) : -len(END)]
            if b"\n" not in rest and b"\r" not in rest:  # by far the most: one whole event of one line
                self.recognised = True
                return [(b"", rest)]
        if self._buffer:
            if self._started and b"\n" not in data and b"\r" not in data and not self._buffer.endswith(b"\r"):
                self._buffer += data  # a long line grows read by read, and is searched once
                self._check_size()
                return []
            data = bytes(self._buffer) + data
        if not self._started:
            if len(data) < 3 and b"\xef\xbb\xbf".startswith(data):
                self._buffer = bytearray(data)
                return []
            self._started = True
            data = data.removeprefix(b"\xef\xbb\xbf")
        events: list[tuple[bytes, bytes]] = []
        position = 0
        for match in _LINE_END.finditer(data):
            # A CR at the very end may be half of a CRLF: wait for the next byte.
            if match.end() == len(data) and data.endswith(b"\r"):
                break
            line = data[position : match.start()]
            position = match.end()
            if line:
                self._line(line)
            elif self._data or self._event:
                if self._data:
                    events.append((self._event, b"\n".join(self._data)))
                self._event, self._data, self._data_bytes = b"", [], 0
        self._buffer = bytearray(data[position:])
        self._check_size()
        return events

    def end(self) -> list[tuple[bytes, bytes]]:
        """The body has ended, so a CR at its very end was a whole line end. Events that this completes, as of feed."""
        return self.feed(b"\n") if self._buffer.endswith(b"\r") else []

    def _check_size(self) -> None:
        if len(self._buffer) + self._data_bytes > MAX_EVENT_BYTES:
            raise SseOverflowError(f"an event of the stream exceeds {MAX_EVENT_BYTES >> 20} MiB")

    def _line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        self.recognised = self.recognised or field in FIELDS
        if field == b"data":
            self._data.append(value)
            self._data_bytes += len(value)
        elif field == b"event":
            self._event = value
        elif field == ERROR_FIELD:
            self._event = ERROR_FIELD
            self._data.append(value)
            self._data_bytes += len(value)

    @property
    def idle(self) -> bool:
        """Whether the next byte begins a new event and nothing of an earlier one is kept, not even its type."""
        return not (self._buffer or self._data or self._event)

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished event are held: true at the end of a stream that was cut off."""
        return bool(self._buffer.strip() or self._data)

    @property
    def unfinished(self) -> bytes:
        """Data of the event that is not finished: only its blank line, or its last line's end, may be missing."""
        field, _, value = bytes(self._buffer.strip()).partition(b":")
        last = [value.removeprefix(b" ")] if field == b"data" else []
        return b"\n".join([*self._data, *last])
