"""What the events of one stream have in common, so that the next one need not be decoded.

Nearly all events of a token stream are equal but for a short text. Once an event was decoded, its JSON is cut around
that text; a later event with the same beginning and the same end, and only plain characters between them, means the
same: one more piece of text. Anything else (an escape, a finish reason, usage, an error) differs somewhere outside the
text or holds a character that is not plain, and is decoded as ever.
"""

import re
from collections.abc import Callable

TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text)":\s?"((?:[^"\\]|\\.)*)"')
"""A member that carries generated text. An event in which several of them match has no template."""
PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
"""ASCII that stands for itself inside a JSON string (RFC 8259, section 7)."""
ESCAPED = re.compile(rb'(?:[ !#-\[\]-~\x80-\xff]|\\["\\/bfnrt])+')


def cut(event: bytes, is_text: Callable[[bytes], bool]) -> tuple[bytes, bytes] | None:
    """What stands before and behind the text of one event; None when it cannot serve as a template.

    is_text: decodes an event and says whether it is a piece of text and nothing else.
    """
    found = TEXT.search(event)
    if found is None or TEXT.search(event, found.end()) is not None:
        return None
    before, behind = event[: found.start(1)], event[found.end(1) :]
    if is_text(before + b"x" + behind) and not is_text(before + behind):
        return before, behind
    return None


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
