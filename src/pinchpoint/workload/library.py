"""The workloads that come with Pinchpoint: presets.toml beside this file."""

import tomllib
from functools import cache
from importlib.resources import files

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.plan import ClassSpec


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One workload of the library.

    summary: one line. stresses: what of a service it strains. source: where the numbers come from. needs: what the
    service must be able to do; "" for plain text. classes: with all lengths spelled out; a class may name another
    preset of one class instead and change its weight, name and SLOs.
    """

    summary: str
    stresses: str
    source: str
    classes: tuple[ClassSpec, ...]
    needs: str = ""


@cache
def presets() -> dict[str, Preset]:
    text = files("pinchpoint.workload").joinpath("presets.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Preset])


def preset_named(name: str) -> Preset:
    """Raises UsageError with the choices."""
    found = presets().get(name)
    if found is None:
        raise UsageError(f"there is no workload {name!r}; choose from {', '.join(presets())}")
    return found
