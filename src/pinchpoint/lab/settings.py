"""Parameters of the lab from text, as a command line gives them: KEY=VALUE to a value of the right type."""

from collections.abc import Sequence
from typing import Any, get_type_hints

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.params import GROUPS, LabParams


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Values for LabParams.changed. `host.cores=2`, `kv_blocks=none`, `front.replica_speed_ratios=[1, 0.5]`.

    Raises UsageError for a word without =, a parameter that does not exist, and a value of another type.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} sets nothing; write it as KEY=VALUE, such as max_num_seqs=64")
        values[key] = _value(key, text)
    return values


def _value(key: str, text: str) -> Any:
    kind = _type_of(key)
    try:
        return msgspec.convert(_plain(text), kind, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{key} cannot be {text!r}: {str(error)[:1].lower()}{str(error)[1:]}") from error


def _plain(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {"true": True, "false": False}.get(text.lower(), text)


def _type_of(key: str) -> Any:
    group, dot, field = key.partition(".")
    if dot and group not in GROUPS:
        raise UsageError(f"the lab has no group of parameters {group!r}; choose one of {', '.join(GROUPS)}")
    owner, name = (GROUPS[group], field) if dot else (LabParams, key)
    hints = get_type_hints(owner)
    if name not in hints:
        prefix = f"{group}." if dot else ""
        fields = ", ".join(prefix + name for name in owner.__struct_fields__)
        raise UsageError(f"the lab has no parameter {key}; choose one of {fields}")
    return hints[name]
