"""What the collector process is told, and the shape of one reading. No behaviour."""

from typing import NamedTuple, Protocol

import msgspec

DEFAULT_PERIOD_S = 0.5
"""Two readings a second: five-second windows, the shortest that rules look at, then hold ten."""


class PageAt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page of metrics and the name of its source. keyed: on the given server, which may have the API key."""

    name: str
    url: str
    keyed: bool = False
    host: str | None = None
    """Label of its machine; None: this one, or none that is known."""


class OtlpAt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where spans are received, and the run whose requests carry a traceparent; run_id None: none do."""

    host: str
    http_port: int
    grpc_port: int
    run_id: str | None = None


class CollectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sent to the collector as one line of JSON on its standard input. Holds no secret."""

    out_dir: str
    """Run directory; parts go to out_dir/parts."""
    pages: tuple[PageAt, ...] = ()
    hosts: tuple[str, ...] = ()
    """Agents on other machines, NAME=URL or URL."""
    host_token_env: str | None = None
    """Name of the environment variable that holds their token."""
    otlp: OtlpAt | None = None
    accelerators: bool = False
    """Whether the accelerators of this host are read."""
    server_pids: tuple[int, ...] = ()
    """Processes of the service that listen; their descendants are found by the collector."""
    client_pids: tuple[int, ...] = ()
    """Processes of the load generator; descendants are found too, the collector itself is left out."""
    null_request_urls: tuple[str, ...] = ()
    """Answer without touching the model."""
    period_s: float = DEFAULT_PERIOD_S
    parent_pid: int | None = None
    """The collector ends when this is no longer its parent."""
    stop_path: str | None = None
    """The collector ends when this file exists."""
    ca_file: str | None = None
    """PEM file of a private authority, for https URLs."""
    headers_env: str | None = None
    """Name of the environment variable that holds the API key."""


class Reading(NamedTuple):
    """One value of one source at one instant. `labels` is formatted (catalog.format_labels)."""

    raw: str
    series: str | None
    labels: str
    value: float


class Source(Protocol):
    """Something that can be read again and again, by one thread."""

    name: str

    def read(self) -> tuple[int, list[Reading]]:
        """The instant (monotonic ns) the values belong to, and the values. Failures are readings, not exceptions."""
        ...


def own(series: str, value: float, labels: str = "") -> Reading:
    """A value we measured ourselves: the canonical name is the exposed one."""
    return Reading(series, series, labels, value)


def event(raw: str, labels: str = "") -> Reading:
    """Something happened that is no value of any series."""
    return Reading(raw, None, labels, 1.0)
