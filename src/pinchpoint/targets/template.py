"""What the events of one stream have in common, so that the next one need not be decoded.

Nearly all events of a token stream are equal but for a short text. Once an event was decoded, its JSON is cut around
that text; a later event with the same beginning and the same end, and only plain characters between them, means the
same: one more piece of text. Anything else (an escape, a finish reason, usage, an error) differs somewhere outside the
text or holds a character that is not plain, and is decoded as ever.
"""

import re
from collections.abc import Callable

from pinchpoint.targets.sse import SseParser
from pinchpoint.targets.target import Chunk

TEXT_MEMBERS = (b"content", b"reasoning_content", b"reasoning", b"text", b"thinking", b"partial_json", b"text_output")
TEXT = re.compile(rb'"(?:%s)":\s?"((?:[^"\\]|\\.)*)"' % b"|".join(TEXT_MEMBERS))
"""A member that carries generated text. An event in which several of them match has no template."""
PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
"""ASCII that stands for itself inside a JSON string (RFC 8259, section 7)."""
ESCAPED = re.compile(rb'(?:[ !#-\[\]-~\x80-\xff]|\\["\\/bfnrt])+')


class Templates:
    """Makes templates of the server-sent events of one API.

    parse: the API's own reading of an event. text: finds a member that carries generated text; its first group is what
    stands between the quotes. A service that does not number its answers needs a template
    once: that of the last answer serves the next.
    """

    def __init__(self, parse: Callable[[bytes, bytes], Chunk], text: re.Pattern[bytes] = TEXT) -> None:
        self._parse = parse
        self._text = text
        self._last = (b"", b"")

    def of(self, event: bytes) -> tuple[bytes, bytes] | None:
        """What stands before and behind the text of one event; None when it cannot serve as a template."""
        before, behind = self._last
        if before and event.startswith(before) and event.endswith(behind):
            text = event[len(before) : -len(behind)]
            if is_plain(text):
                return before, behind
        found = self._cut(event)
        if found is not None:
            self._last = found
        return found

    def _cut(self, event: bytes) -> tuple[bytes, bytes] | None:
        found = self._text.search(event)
        if found is None or self._text.search(event, found.end()) is not None:
            return None
        before, behind = event[: found.start(1)], event[found.end(1) :]
        if self._is_text(before + b"x" + behind) and not self._is_text(before + behind):
            return before, behind
        return None

    def _is_text(self, event: bytes) -> bool:
        """Whether the bytes are one whole event that is a piece of text and nothing else."""
        parser = SseParser()
        events = parser.feed(event)
        if len(events) != 1 or not parser.idle:
            return False
        try:
            chunk = self._parse(*events[0])
        except ValueError:
            return False
        said = (chunk.finish_reason, chunk.usage, chunk.error, chunk.done)
        return chunk.has_text and said == (None, None, None, False)


def is_plain(text: bytes) -> bool:
    """Whether bytes are the inside of a JSON string that every decoder takes.

    No control character, every quote and backslash part of an escape, no `u` escape (half of a surrogate pair would not
    be valid), and beyond ASCII valid UTF-8.
    """
    other = text.translate(None, PLAIN)
    if not other:
        return True
    if ESCAPED.fullmatch(text) is None:
        return False
    if other.isascii():
        return True
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
