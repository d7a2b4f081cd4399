"""From the flags that say what requests are, common to `run` and `load`, to keys of the plan."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.plan import WorkloadSpec

WORKLOAD_FILE_SUFFIX = ".toml"


def request_values(
    *,
    workload: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
    exact: bool,
    api: str | None,
    template: Path | None,
    api_options: tuple[str, ...],
    tokenizer: str | None,
) -> dict[str, Any]:
    """Only what was given. exact: token counts are the length of every request.

    Raises UsageError for a file that cannot be read and for flags that contradict each other.
    """
    values: dict[str, Any] = {}
    shape: dict[str, Any] = {}
    if workload is not None:
        shape = _read_workload(Path(workload)) if workload.endswith(WORKLOAD_FILE_SUFFIX) else {"preset": workload}
    counts = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    shape |= {key: value for key, value in counts.items() if value is not None}
    if shape:
        values["workload"] = {**shape, "exact": True} if exact else shape
    values |= api_values(api, template, api_options)
    if tokenizer in ("service", "estimate"):
        values["tokenizer"] = {"source": tokenizer}
    elif tokenizer is not None:
        values["tokenizer"] = {"source": "file", "file": tokenizer}
    return values


def api_values(api: str | None, template: Path | None, api_options: tuple[str, ...]) -> dict[str, Any]:
    """Of the flags that say what a service speaks. Raises UsageError as request_values."""
    values: dict[str, Any] = {}
    if template is not None:
        if api not in (None, "custom"):
            raise UsageError(f"--template is the custom target's; leave out --api {api}")
        values["api"] = "custom"
        values["api_options"] = _read_toml(template, "template")
    elif api is not None:
        values["api"] = api
    if api_options:
        values["api_options"] = {**values.get("api_options", {}), **dict(_option(text) for text in api_options)}
    return values


def _read_workload(path: Path) -> dict[str, Any]:
    """The keys of a workload, or those under [workload] of a file that has such a table."""
    found = _read_toml(path, "workload")
    inner = found.get("workload", found)
    if not isinstance(inner, dict):
        raise UsageError(f"{path}: workload must be a table")
    if not inner:
        raise UsageError(f"{path} says nothing of a workload; give it a preset, lengths or [[classes]]")
    try:
        msgspec.convert(inner, WorkloadSpec)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}; see docs/reference/plan.md#workload") from None
    return inner


def _read_toml(path: Path, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is a TOML value (a number, a list, true) is taken as one, anything else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"{text!r} is not an option of the target; write NAME=VALUE")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value
