"""How well a fitted workload resembles the requests it was learnt from. Words only: made by `workload`, shown by
`report`."""

import msgspec


class Match(msgspec.Struct, frozen=True):
    """One quantity of the held-back half beside that of the load that the fit makes and of the baseline.

    Distances (of Kolmogorov and Smirnov, from 0 to 1; 0 is the same law) compare with the held-back half; `floor` is
    then the distance between the two halves of the trace. Other quantities have a value of their own in `held`.
    chance: so far from the held-back half, a load of the very same law is found once in twenty times. None: not in this
    trace.
    """

    name: str
    distance: bool
    fit: float | None
    baseline: float | None
    held: float | None = None
    floor: float | None = None
    chance: float = 0.0

    @property
    def better(self) -> bool | None:
        """Whether the fit is nearer to the held-back half than the baseline is, or so near that nothing could be
        nearer but by chance. None: not in this trace."""
        if self.fit is None or self.baseline is None or (not self.distance and self.held is None):
            return None
        held = 0.0 if self.distance else self.held or 0.0
        off, base_off = abs(self.fit - held), abs(self.baseline - held)
        return off <= base_off or off <= max(self.chance, self.floor or 0.0)


class Curve(msgspec.Struct, frozen=True):
    """What is drawn: values of the trace, the fit and the baseline over the same positions."""

    name: str
    unit: str
    x: tuple[float, ...]
    trace: tuple[float, ...]
    fit: tuple[float, ...]
    baseline: tuple[float, ...]
    log: bool = False
    """Whether positions are better drawn on a logarithmic axis."""


class FitQuality(msgspec.Struct, frozen=True):
    """of: requests in the trace. held: of the half that the fit has not seen. notes: what could not be learnt."""

    trace: str
    format: str
    requests: int
    span_s: float
    held: int
    summary: tuple[str, ...]
    matches: tuple[Match, ...]
    curves: tuple[Curve, ...]
    notes: tuple[str, ...]
