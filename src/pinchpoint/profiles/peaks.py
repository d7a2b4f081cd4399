"""What a device can do at most, by the name that a profile gives it (peaks.toml)."""

import re
from functools import cache
from importlib import resources

import msgspec

from pinchpoint.profiles.model import Device


class Peak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Data-sheet rates. match: regular expression on the device's name, case does not matter."""

    match: str
    flops_per_s: float
    bytes_per_s: float
    source: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: list[Peak]


@cache
def peaks() -> tuple[Peak, ...]:
    text = resources.files("pinchpoint.profiles").joinpath("peaks.toml").read_bytes()
    return tuple(msgspec.toml.decode(text, type=_File).device)


def with_peaks(device: Device) -> Device:
    """The device with what its data sheet says; as it was if its name is not known."""
    for peak in peaks():
        if device.name and re.search(peak.match, device.name, re.IGNORECASE):
            return msgspec.structs.replace(device, peak_flops=peak.flops_per_s, peak_bytes_per_s=peak.bytes_per_s)
    return device
