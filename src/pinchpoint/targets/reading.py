"""How answers are decoded, whatever the API: JSON with the members it cares for, and complaints in words."""

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decoded(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    """Raises ValueError that says what the data is not: `what` with its article, such as "a completion"."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        if data.lstrip()[:1] == b"<":
            raise ValueError(f"the answer is an HTML page, not {what}") from None
        raise ValueError(f"the answer is not {what} ({error})") from None


def as_text(value: Any) -> str:
    """What stands where a text belongs; a number or an object there is said as it is written."""
    return value if isinstance(value, str) else "" if not value else str(value)
