"""Newline-delimited JSON, sans-IO: bytes in any split -> whole lines. The same calls as of `sse.SseParser`.

Lines end with LF or CRLF; NUL ends one, too, as an old vLLM server does; empty lines are dropped. The last line needs
no end.
"""

import re

from pinchpoint.targets.sse import MAX_EVENT_BYTES, SseOverflowError

_LINE_END = re.compile(rb"[\r\n\0]+")


class NdjsonParser:
    """feed() returns the lines completed by the new bytes, as (b"", line): such streams have no event types."""

    def __init__(self) -> None:
        self.recognised = False
        """Whether any line so far looks like JSON."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Raises SseOverflowError for a line without end."""
        first = _LINE_END.search(data)
        if first is None:
            self._buffer += data
            if len(self._buffer) > MAX_EVENT_BYTES:
                raise SseOverflowError(f"a line of the stream exceeds {MAX_EVENT_BYTES >> 20} MiB")
            return []
        *lines, rest = _LINE_END.split(bytes(self._buffer) + data)
        self._buffer = bytearray(rest)
        return [(b"", self._seen(line)) for line in lines if line.strip()]

    def end(self) -> list[tuple[bytes, bytes]]:
        """The body has ended, and with it the last line. A half of one stays behind, see `pending`."""
        line = bytes(self._buffer)
        if not line.strip() or not line.rstrip().endswith((b"}", b"]")):
            return []
        self._buffer = bytearray()
        return [(b"", self._seen(line))]

    def _seen(self, line: bytes) -> bytes:
        self.recognised = self.recognised or line.lstrip()[:1] in (b"{", b"[")
        return line

    @property
    def idle(self) -> bool:
        """Whether the next byte begins a new line."""
        return not self._buffer

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished line are held: true at the end of a stream that was cut off."""
        return bool(self._buffer.strip())

    @property
    def unfinished(self) -> bytes:
        """The line that is not finished."""
        return bytes(self._buffer.strip())
