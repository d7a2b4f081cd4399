"""Numbers in what vendors' tools print: `629.45 W`, `19818 MiB`, `16x`, `Not Active`, `N/A`, in the units of series."""

import math
import re

UNITS = {
    "": 1.0,
    "%": 0.01,
    "B": 1.0,
    "KIB": float(1 << 10),
    "MIB": float(1 << 20),
    "MB": float(1 << 20),
    "GIB": float(1 << 30),
    "GB": float(1 << 30),
    "KB/S": 1e3,
    "W": 1.0,
    "MW": 1e-3,
    "J": 1.0,
    "UJ": 1e-6,
    "C": 1.0,
    "MHZ": 1e6,
    "US": 1e-6,
    "X": 1.0,
}
"""Factor to the unit of series, by the tools' unit in capitals. MB and GB are binary there: 64 GiB are 65536 MB."""
WORDS = {"yes": 1.0, "no": 0.0, "active": 1.0, "not active": 0.0}
_NUMBER = re.compile(r"\(?\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z%/]*)\s*\)?")


def quantity(text: object, unit: str = "") -> float | None:
    """The value in the unit of series; None for N/A, an unknown unit or no number. `unit`: meant when none is said."""
    if isinstance(text, bool):
        return None
    if isinstance(text, int | float):
        text = repr(text)
    if not isinstance(text, str):
        return None
    text = text.strip()
    word = WORDS.get(text.lower())
    if word is not None:
        return word
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    factor = UNITS.get((match.group(2) or unit).upper())
    if factor is None:
        return None
    value = float(match.group(1)) * factor
    return value if math.isfinite(value) else None


def words(text: object) -> str | None:
    """A name as printed; None for nothing, N/A and the like."""
    if not isinstance(text, str):
        return None
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):  # nvidia-smi's [N/A]
        text = text[1:-1].strip()
    return None if text.lower() in ("", "n/a", "na", "none", "unknown", "not supported") else text
