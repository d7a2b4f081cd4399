"""Makes text from a service safe to print: model names, error strings and reasons are data, never commands.

A terminal obeys control characters (colours, cursor moves, window titles, clipboard writes), rich obeys markup in
square brackets, and bidirectional overrides reorder what a reader sees. All three are neutralised here, in one place.
HTML has its own escaping (autoescape in the template) on top of `visible`.
"""

import re

from rich.text import Text

_ESCAPE_SEQUENCE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    "|\x9b[0-?]*[ -/]*[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x90\x9d\x9e\x9f]).*?(?:\x07|\x1b\\\\|\x9c|$)"  # OSC, DCS, PM, APC: title, clipboard, links
    "|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_SPACE = re.compile("[\\t\\n\\v\\f\\r\x85\u2028\u2029]+")
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"  # zero width, bidirectional, annotation
    "\ud800-\udfff]"  # lone surrogates cannot be encoded
)
LENGTH_MAX = 400
"""Characters kept of one piece of text; a service may send megabytes as an error message."""


def visible(text: object, length_max: int = LENGTH_MAX) -> str:
    """One line of printable characters: escape sequences dropped, line ends become spaces, the rest of the control
    characters U+FFFD, long text cut with an ellipsis."""
    kept = _ESCAPE_SEQUENCE.sub("", str(text)[: 16 * length_max])
    kept = _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", _SPACE.sub(" ", kept)).strip()
    return kept if len(kept) <= length_max else kept[: length_max - 1] + "…"


def literal(text: object, style: str = "") -> Text:
    """`visible` text as rich prints it, with square brackets taken literally."""
    return Text(visible(text), style=style)
