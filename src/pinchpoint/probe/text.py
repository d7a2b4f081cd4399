"""Text that came from a stranger, made fit to be shown: no control characters, no key, not too long."""

import unicodedata

MAX_CHARS = 200
"""A sentence's worth; longer texts of servers are stack traces or pages."""


def clean(text: str, secret: str | None = None, max_chars: int = MAX_CHARS) -> str:
    """Control, format and surrogate characters become blanks, blanks are joined, `secret` is masked."""
    if secret:
        text = text.replace(secret, "***")
    visible = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text[: 4 * max_chars])
    joined = " ".join(visible.split())
    return joined if len(joined) <= max_chars else joined[: max_chars - 1] + "…"
