"""From a run directory to numbers on one time axis: requests, telemetry series, windows, statistics per stage.

Everything downstream (capacity, diagnosis, report) reads a run through `RunView`. Times are seconds since the run's
`t0_ns`. A value that was not measured is NaN in arrays and None in scalars.
"""

import math
from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np

from pinchpoint.catalog import HISTOGRAM_MEMBERS, load_catalog, parse_labels
from pinchpoint.chunks import CHUNK_COLUMNS, ChunkDigest
from pinchpoint.clock import NS_PER_S
from pinchpoint.growth import Growth, growth, identity, quantile_bounds, rate_between
from pinchpoint.model import ERROR_STATUSES, ClassResult, Slo, Stage, StageResult
from pinchpoint.rundir import Run
from pinchpoint.slo import NOT_ANSWERED_STATUSES, WITHDRAWN_STATUSES, surely_missed
from pinchpoint.stats import effective_ratio, quantile, quantile_interval

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}

REQUEST_COLUMNS = (
    *("request_id", "stage", "worker", "status", "error", "http_status", "retry_after_s"),
    *("scheduled_ns", "sent_ns", "connected_ns", "first_byte_ns", "first_token_ns", "last_token_ns", "end_ns"),
    *("input_tokens", "output_tokens", "cached_tokens", "requested_input_tokens", "requested_output_tokens"),
    *("shared_input_tokens", "class_id"),
    *("coalesced_count", "timestamp_error_ns", "timestamp_source"),
)
"""Columns of the records that Requests reads, apart from the arrivals of tokens."""

RIVAL_LAYERS = ("host", "gpu", "accelerator", "server")
"""Of these several sources may tell the same (psutil and a node-exporter, NVML and a GPU exporter): they are not added.
Readings of other machines, and of another maker's devices in one machine, are told apart by MACHINE_LABELS."""
MACHINE_LABELS = ("host", "replica", "kind")
HOLD_PERIODS = 3.0
"""A reading stands for its source until so many of its usual periods have gone by: two missed scrapes are bridged."""
NO_GROWTH = Growth(np.empty(0), np.empty(0), np.empty(0), np.empty(0, int))


class Series(msgspec.Struct, frozen=True):
    """Readings of one canonical series, summed or maximised over labels. t_s and value have shape (n,)."""

    name: str
    unit: str
    kind: str
    t_s: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.t_s)


class Requests:
    """The records table as numpy columns, one entry per request, in order of the scheduled instant."""

    def __init__(self, run: Run) -> None:
        table = run.record_columns(REQUEST_COLUMNS)
        # Stable, so that the order of requests that are due at one instant is the same each time.
        order = np.argsort(table.column("scheduled_ns").to_numpy(), kind="stable")
        t0_ns = run.manifest.t0_ns

        def instants(name: str) -> np.ndarray:
            """Seconds since t0, NaN where null."""
            column = table.column(name)
            result = (column.fill_null(0).to_numpy() - t0_ns) / NS_PER_S
            result[column.is_null().to_numpy()] = np.nan
            return result[order]

        def numbers(name: str) -> np.ndarray:
            return np.asarray(table.column(name).cast("float64").to_numpy(), dtype=float)[order]

        def texts(name: str) -> np.ndarray:
            """Strings, None where null. Equal ones are one object, so a million of them cost no more than pointers."""
            encoded = table.column(name).combine_chunks().dictionary_encode()
            words = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
            return words[np.asarray(encoded.indices.fill_null(len(words) - 1))[order]]

        self.count = table.num_rows
        self.request_id = table.column("request_id").to_numpy()[order]
        self.stage = table.column("stage").to_numpy().astype(int)[order]
        self.worker = table.column("worker").to_numpy()[order]
        self.status = texts("status")
        self.error = texts("error")
        self.http_status = numbers("http_status")
        self.retry_after_s = numbers("retry_after_s")
        self.scheduled_s = instants("scheduled_ns")
        self.sent_s = instants("sent_ns")
        self.connected_s = instants("connected_ns")
        self.first_byte_s = instants("first_byte_ns")
        self.first_token_s = instants("first_token_ns")
        self.last_token_s = instants("last_token_ns")
        self.end_s = instants("end_ns")
        self.input_tokens = numbers("input_tokens")
        self.output_tokens = numbers("output_tokens")
        self.cached_tokens = numbers("cached_tokens")
        self.requested_input_tokens = numbers("requested_input_tokens")
        self.requested_output_tokens = numbers("requested_output_tokens")
        self.shared_input_tokens = np.nan_to_num(numbers("shared_input_tokens"))
        self.class_id = np.nan_to_num(numbers("class_id")).astype(int)
        self._classes = run.manifest.classes
        self.coalesced_count = numbers("coalesced_count")
        self.timestamp_error_s = numbers("timestamp_error_ns") / NS_PER_S
        self.timestamp_source = texts("timestamp_source")

        self.send_lag_s = self.sent_s - self.scheduled_s
        self.ttft_s = self.first_token_s - self.scheduled_s
        self.ttft_from_send_s = self.first_token_s - self.sent_s
        self.e2e_s = np.where(self.status == "ok", self.end_s - self.scheduled_s, np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            gaps = self.output_tokens - 1
            self.tpot_s = np.where(gaps >= 1, (self.last_token_s - self.first_token_s) / gaps, np.nan)
        self._run = run
        self._order = order

    @cached_property
    def digest(self) -> ChunkDigest:
        """Of the arrivals of tokens, in the order of the records; read in one pass on first use."""
        return ChunkDigest(self._run.record_batches(CHUNK_COLUMNS), self._run.manifest.t0_ns)

    @cached_property
    def itl_max_s(self) -> np.ndarray:
        """Largest gap between two text-carrying events per request; NaN for fewer than two."""
        return self.digest.gap_max_s[self._order]

    @cached_property
    def chunks(self) -> np.ndarray:
        """Text-carrying events per request."""
        return self.digest.count[self._order]

    def outcomes(self, slo: Slo) -> tuple[np.ndarray, np.ndarray]:
        """(met, counts), boolean, shape (requests,): which requests met the SLO, and which count for it at all.

        slo.request_meets for all requests at once, and slo.surely_missed for those that were withdrawn. Of an SLO of
        one class the requests of the others do not count.
        """
        met, counts = self._outcomes(slo)
        return (met, counts) if slo.scope is None else (met, counts & self.of_class(slo.scope))

    def of_class(self, name: str) -> np.ndarray:
        """Mask of the requests of a class; nobody, where the run has none of that name."""
        if name not in self._classes:
            return np.zeros(self.count, bool)
        return self.class_id == self._classes.index(name)

    def _outcomes(self, slo: Slo) -> tuple[np.ndarray, np.ndarray]:
        if slo.metric == "errors":
            return self.status == "ok", ~np.isin(self._status_text, NOT_ANSWERED_STATUSES)
        value_s = {"ttft": self.ttft_s, "tpot": self.tpot_s, "e2e": self.e2e_s}.get(slo.metric)
        value_s = self.itl_max_s if value_s is None else value_s
        timed_out = self.status == "timeout"
        measured = np.isfinite(value_s) & ~np.isin(self._status_text, (*NOT_ANSWERED_STATUSES, *ERROR_STATUSES))
        with np.errstate(invalid="ignore"):
            met = measured & ~timed_out & (value_s < slo.limit)
        return met, measured | timed_out | self._withdrawn_too_late(slo)

    def _withdrawn_too_late(self, slo: Slo) -> np.ndarray:
        missed = np.zeros(self.count, bool)
        for i in np.flatnonzero(np.isin(self._status_text, WITHDRAWN_STATUSES)):
            age_s = self.end_s[i] - self.scheduled_s[i]
            missed[i] = surely_missed(
                slo,
                age_s=age_s if np.isfinite(age_s) else 0.0,
                has_first_byte=bool(np.isfinite(self.first_byte_s[i])),
                since_first_token_s=_known(self.end_s[i] - self.first_token_s[i]),
                max_output_tokens=int(self.requested_output_tokens[i]),
            )
        return missed

    @cached_property
    def _status_text(self) -> np.ndarray:
        return self.status.astype(str)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class Child(NamedTuple):
    """One label set of one source: what it read of a series, as it was read."""

    source: str
    labels: dict[str, str]
    series: Series


class _Samples(NamedTuple):
    """Readings of one series in time order, shape (n,): instant, which child, value."""

    t_s: np.ndarray
    child: np.ndarray
    value: np.ndarray
    children: list[tuple[str, str]]
    """Source and labels of each child."""

    @property
    def source(self) -> np.ndarray:
        return np.array(_numbered([source for source, _ in self.children]))[self.child]


class RunView:
    """One run, ready to be asked questions. Cheap to create; columns are derived once, on first use."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.manifest = run.manifest
        self.facts = run.manifest.target
        self.t0_ns = run.manifest.t0_ns
        self.stages: list[Stage] = run.manifest.stages
        self.catalog = load_catalog()
        self._grown: dict[str, Growth] = {}
        self._histograms: dict[str, tuple[Growth, list[tuple[str, dict[str, str]]]]] = {}

    @cached_property
    def requests(self) -> Requests:
        return Requests(self.run)

    # -- windows ---------------------------------------------------------------------------------------------------

    def window_s(self, stage: Stage) -> tuple[float, float]:
        """Steady part of a stage: after settling, up to the end of issue. Seconds since t0."""
        start_ns = min(stage.t0_ns + stage.settle_ns, stage.t1_ns)
        return (start_ns - self.t0_ns) / NS_PER_S, (stage.t1_ns - self.t0_ns) / NS_PER_S

    def stages_of(self, *kinds: str) -> list[Stage]:
        return [stage for stage in self.stages if stage.kind in kinds]

    def select(self, stage: Stage) -> np.ndarray:
        """Boolean mask of the requests that were scheduled in the steady part of a stage."""
        start_s, end_s = self.window_s(stage)
        r = self.requests
        return (r.stage == stage.index) & (r.scheduled_s >= start_s) & (r.scheduled_s < end_s + 1e-9)

    # -- telemetry -------------------------------------------------------------------------------------------------

    @cached_property
    def _samples(self) -> dict[str, _Samples]:
        """By series, in time order; of rival sources only the one that is believed."""
        telemetry = self.run.telemetry
        table = telemetry.filter(telemetry.column("series").is_valid()).sort_by("t_ns")
        if not table.num_rows:
            return {}
        t_s = (table.column("t_ns").to_numpy() - self.t0_ns) / NS_PER_S
        value = table.column("value").to_numpy()
        encoded = [table.column(n).combine_chunks().dictionary_encode() for n in ("series", "source", "labels")]
        names, sources, labels = (np.asarray(each.indices) for each in encoded)
        words = [each.dictionary.to_pylist() for each in encoded]
        order = np.argsort(names, kind="stable")
        bounds = np.searchsorted(names[order], np.arange(len(words[0]) + 1))
        result: dict[str, _Samples] = {}
        for i, name in enumerate(words[0]):
            rows = order[bounds[i] : bounds[i + 1]]
            # A label set of one source is one child.
            sets, child = np.unique(sources[rows].astype(np.int64) * len(words[2]) + labels[rows], return_inverse=True)
            children = [(words[1][code // len(words[2])], words[2][code % len(words[2])]) for code in sets]
            entry = self.catalog.entry(name)
            samples = _Samples(t_s[rows], child.ravel(), value[rows], children)
            result[name] = _believed(samples) if entry is not None and entry.layer in RIVAL_LAYERS else samples
        return result

    @property
    def series_names(self) -> list[str]:
        return sorted(self._samples)

    def has(self, *names: str) -> bool:
        return all(name in self._samples for name in names)

    def missing(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self._samples)

    def series(self, name: str, window_s: tuple[float, float] | None = None) -> Series:
        """Readings of `name` combined over labels: the sum, or the largest where a sum means nothing (Entry.adds_up).
        Of a host: the one that ran the load, where it was read.

        Counters are returned as they are (see `rate`). Empty when never scraped.
        """
        entry = self.catalog.entry(name)
        unit = entry.unit if entry else ""
        kind = entry.kind if entry else "gauge"
        samples = self._here(name)
        if samples is None:
            return Series(name, unit, kind, np.empty(0), np.empty(0))
        t_s, value, source = samples.t_s, samples.value, samples.source
        finite = np.isfinite(value)
        if window_s is not None:
            finite &= (t_s >= window_s[0]) & (t_s <= window_s[1])
        combine = np.add if entry is None or entry.adds_up else np.maximum
        parts = [
            _combined(t_s[mine], value[mine], combine)
            for mine in (finite & (source == number) for number in np.unique(source[finite]))
        ]
        if not parts:
            return Series(name, unit, kind, np.empty(0), np.empty(0))
        instants, combined = parts[0] if len(parts) == 1 else _held(parts, combine)
        return Series(name, unit, kind, instants, combined)

    def _here(self, name: str) -> _Samples | None:
        """Of the host that ran the load where it was read, else of all: machines make no sum."""
        samples, entry = self._samples.get(name), self.catalog.entry(name)
        if samples is None or entry is None or entry.layer != "host":
            return samples
        here = np.array(["host" not in parse_labels(labels) for _, labels in samples.children], bool)
        if here.all() or not here.any():
            return samples
        rows = here[samples.child]
        return _Samples(samples.t_s[rows], samples.child[rows], samples.value[rows], samples.children)

    def children(self, name: str) -> list[Child]:
        """Each label set alone, in the order of source and labels; counters are not differenced. Empty: never read."""
        samples = self._samples.get(name)
        if samples is None:
            return []
        entry = self.catalog.entry(name)
        unit, kind = (entry.unit, entry.kind) if entry else ("", "gauge")
        finite = np.flatnonzero(np.isfinite(samples.value))
        order = finite[np.argsort(samples.child[finite], kind="stable")]
        bounds = np.searchsorted(samples.child[order], np.arange(len(samples.children) + 1))
        found: list[Child] = []
        for number, (source, labels) in enumerate(samples.children):
            mine = order[bounds[number] : bounds[number + 1]]
            series = Series(name, unit, kind, samples.t_s[mine], samples.value[mine])
            found.append(Child(source, parse_labels(labels), series))
        return sorted(found, key=lambda child: (child.source, sorted(child.labels.items())))

    def increase(self, name: str, window_s: tuple[float, float]) -> float | None:
        """Increase of a counter inside the window, summed over its label sets; None with < 2 readings of each.

        Each label set is differenced alone (see growth.py); one that fell began again at zero.
        """
        steps = self._growth(name).within(window_s)
        return float(steps.amount.sum()) if len(steps.amount) else None

    def rate(self, name: str, window_s: tuple[float, float]) -> float | None:
        """Mean increase per second of a counter inside the window; None with fewer than two readings."""
        steps = self._growth(name).within(window_s)
        if not len(steps.amount):
            return None
        return float(steps.amount.sum() / (steps.to_s.max() - steps.from_s.min()))

    def rate_series(self, name: str) -> Series:
        """A counter as increase per second between readings."""
        unit = self.series(name, (0.0, -1.0)).unit
        return Series(name, unit + "/s", "gauge", *rate_between(self._growth(name)))

    def _growth(self, name: str) -> Growth:
        known = self._grown.get(name)
        if known is None:
            samples = self._here(name)
            known = NO_GROWTH if samples is None else _growth_of((samples,), together=False)
            self._grown[name] = known
        return known

    def _histogram_growth(self, name: str) -> tuple[Growth, list[tuple[str, dict[str, str]]]]:
        """Steps of all members of a histogram, and of each child the member it is of and its labels.

        Members of one histogram live in one process: where one of them fell, all began again at zero.
        """
        known = self._histograms.get(name)
        if known is None:
            members = [(end, self._samples[name + end]) for end in HISTOGRAM_MEMBERS if name + end in self._samples]
            steps = _growth_of([samples for _, samples in members], together=True) if members else NO_GROWTH
            told = [(end, parse_labels(labels)) for end, samples in members for _, labels in samples.children]
            known = self._histograms[name] = steps, told
        return known

    def raw_count(self, raw: str, window_s: tuple[float, float]) -> int:
        """How many readings of a raw name (such as `null_request_failed`) lie in the window."""
        t_s = self._raw_times_s.get(raw)
        return 0 if t_s is None else int(((t_s >= window_s[0]) & (t_s <= window_s[1])).sum())

    @cached_property
    def _raw_times_s(self) -> dict[str, np.ndarray]:
        """Instants of the events among the readings: raw names ending in `_failed`."""
        import pyarrow.compute as pc

        table = self.run.telemetry
        table = table.filter(pc.ends_with(table.column("raw"), "_failed"))  # pyright: ignore
        names = np.asarray(table.column("raw").to_pylist(), dtype=object)
        t_s = (table.column("t_ns").to_numpy() - self.t0_ns) / NS_PER_S
        return {str(name): t_s[names == name] for name in set(names.tolist())}

    def scrapes(self, window_s: tuple[float, float]) -> dict[str, tuple[int, int]]:
        """Source of a page -> (times that it could not be read, times that it was) in the window; only those that
        failed in it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self.run.telemetry
        names = pa.array(["scrape_failed", "scrape_s"])
        table = table.filter(pc.is_in(table.column("raw"), value_set=names))  # pyright: ignore
        t_s = (table.column("t_ns").to_numpy() - self.t0_ns) / NS_PER_S
        inside = (t_s >= window_s[0]) & (t_s <= window_s[1])
        sources = np.asarray(table.column("source").to_pylist(), dtype=object)
        failed = np.asarray(table.column("raw").to_pylist(), dtype=object) == "scrape_failed"
        return {
            str(source): (int((inside & failed & mine).sum()), int((inside & ~failed & mine).sum()))
            for source in sorted(set(sources[failed & inside].tolist()))
            for mine in (sources == source,)
        }

    def histogram_mean(self, name: str, window_s: tuple[float, float]) -> float | None:
        """Exact mean of a histogram's observations inside the window, from its _sum and _count."""
        steps, children = self._histogram_growth(name)
        inside = steps.within(window_s)
        amounts = {}
        for end in ("_sum", "_count"):
            mine = np.array([member == end for member, _ in children], bool)[inside.child]
            if not mine.any():
                return None
            amounts[end] = float(inside.amount[mine].sum())
        return amounts["_sum"] / amounts["_count"] if amounts["_count"] else None

    def histogram_quantile_bounds(
        self, name: str, q: float, window_s: tuple[float, float]
    ) -> tuple[float, float] | None:
        """Bucket edges between which the q-quantile of the observations inside the window surely lies.

        In the unit of the series; high is inf when it lies beyond the last edge. No value in between is made up: the
        page tells no more. None without buckets, or without observations in the window. See growth.quantile_bounds.
        """
        steps, children = self._histogram_growth(name)
        inside = steps.within(window_s)
        grown = np.bincount(inside.child, inside.amount, len(children))
        seen = np.bincount(inside.child, minlength=len(children)) > 0
        found: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
        for child in np.flatnonzero(seen):
            member, labels = children[child]
            edge = _edge(labels.get("le")) if member == "_bucket" else None
            if edge is not None:
                rest = tuple(sorted((key, value) for key, value in labels.items() if key != "le"))
                buckets = found.setdefault(rest, {})
                buckets[edge] = buckets.get(edge, 0.0) + float(grown[child])
        whole = [sorted(buckets.items()) for buckets in found.values() if math.inf in buckets]
        return quantile_bounds(
            [np.array([edge for edge, _ in each]) for each in whole],
            [np.array([count for _, count in each]) for each in whole],
            q,
        )

    # -- statistics per stage --------------------------------------------------------------------------------------

    def in_flight(self, t_s: np.ndarray, stage: Stage | None = None) -> np.ndarray:
        """Requests scheduled and not yet ended at each instant (of one stage, or of the whole run)."""
        r = self.requests
        mask = np.ones(r.count, bool) if stage is None else r.stage == stage.index
        starts = np.sort(r.scheduled_s[mask])
        ends = np.sort(np.where(np.isfinite(r.end_s[mask]), r.end_s[mask], np.inf))
        return np.searchsorted(starts, t_s, side="right") - np.searchsorted(ends, t_s, side="right")

    def stage_result(self, stage: Stage, slos: Sequence[Slo]) -> StageResult:
        r = self.requests
        mask = self.select(stage)
        count = int(mask.sum())
        start_s, end_s = self.window_s(stage)
        duration_s = max(end_s - start_s, 1e-9)
        statuses, counts = np.unique(r.status[mask].astype(str), return_counts=True)
        by_status = dict(zip(statuses.tolist(), counts.tolist(), strict=True))
        attainment: dict[str, tuple[int, int]] = {}
        effective: dict[str, float] = {}
        meets_all = r.status[mask] == "ok"
        for slo in slos:
            met, counts_for_it = (each[mask] for each in r.outcomes(slo))
            counted = met[counts_for_it]
            attainment[slo.text] = (int(counted.sum()), len(counted))
            effective[slo.text] = effective_ratio(counted.tolist())
            meets_all &= met | ~counts_for_it
        ended_ok = (r.status == "ok") & (r.stage == stage.index) & (r.end_s >= start_s) & (r.end_s < end_s)
        grid_s = np.linspace(start_s, end_s, 50)
        ttft_s = _finite(r.ttft_s[mask])
        return StageResult(
            index=stage.index,
            kind=stage.kind,
            name=stage.name,
            rate_rps=stage.rate_rps,
            achieved_rps=float(np.isfinite(r.sent_s[mask]).sum() / duration_s) if count else None,
            completed_rps=float(ended_ok.sum() / duration_s) if count else None,
            goodput_rps=float(meets_all.sum() / duration_s) if count else None,
            duration_s=duration_s,
            requests=count,
            ok=by_status.get("ok", 0),
            errors={status: n for status, n in by_status.items() if status != "ok"},
            ttft_s=_quantiles(ttft_s),
            tpot_s=_quantiles(_finite(r.tpot_s[mask])),
            e2e_s=_quantiles(_finite(r.e2e_s[mask])),
            ttft_p95_interval_s=quantile_interval(ttft_s, 0.95),
            in_flight_mean=float(self.in_flight(grid_s).mean()) if count else None,
            output_tokens_per_s=self.token_rate((start_s, end_s)),
            attainment=attainment,
            effective=effective,
            decision=stage.decision,
            reason=stage.reason,
            classes=self._class_results(mask, attainment, slos),
        )

    def _class_results(
        self, mask: np.ndarray, attainment: dict[str, tuple[int, int]], slos: Sequence[Slo]
    ) -> tuple[ClassResult, ...]:
        """By class of the requests in the mask; empty where the run has one class."""
        r, names = self.requests, self.manifest.classes
        if len(names) < 2:
            return ()
        found = []
        for name in names:
            mine = mask & r.of_class(name)
            if not mine.any():
                continue
            found.append(
                ClassResult(
                    name=name,
                    requests=int(mine.sum()),
                    ok=int((r.status[mine] == "ok").sum()),
                    ttft_s=_quantiles(_finite(r.ttft_s[mine])),
                    tpot_s=_quantiles(_finite(r.tpot_s[mine])),
                    e2e_s=_quantiles(_finite(r.e2e_s[mine])),
                    attainment={slo.text: attainment[slo.text] for slo in slos if slo.scope == name},
                )
            )
        return tuple(found)

    def token_rate(self, window_s: tuple[float, float]) -> float | None:
        """Output tokens received per second; None when the run has none or the window no length."""
        digest = self.requests.digest
        if not digest.tokens or window_s[1] <= window_s[0]:
            return None
        low, high = digest.tokens_until(window_s)
        return float((high - low) / (window_s[1] - window_s[0]))


def _combined(t_s: np.ndarray, value: np.ndarray, combine: np.ufunc) -> tuple[np.ndarray, np.ndarray]:
    """Readings of one source, those of one instant made one."""
    instants, inverse = np.unique(t_s, return_inverse=True)
    combined = np.full(len(instants), -np.inf if combine is np.maximum else 0.0)
    combine.at(combined, inverse.ravel(), value)
    return instants, combined


def _held(parts: Sequence[tuple[np.ndarray, np.ndarray]], combine: np.ufunc) -> tuple[np.ndarray, np.ndarray]:
    """Several sources made one at every instant of any of them: each holds its value until its next reading.

    A source that is silent for HOLD_PERIODS of its own is left out until it speaks again.
    """
    instants = np.unique(np.concatenate([t_s for t_s, _ in parts]))
    total = np.full(len(instants), -np.inf if combine is np.maximum else 0.0)
    for t_s, value in parts:
        place = np.searchsorted(t_s, instants, side="right") - 1
        hold_s = HOLD_PERIODS * float(np.median(np.diff(t_s))) if len(t_s) > 1 else 0.0
        speaks = (place >= 0) & (instants - t_s[np.maximum(place, 0)] <= hold_s)
        total[speaks] = combine(total[speaks], value[place[speaks]])
    return instants, total


def _believed(samples: _Samples) -> _Samples:
    """Of several sources that tell of one machine, the one that told most; a draw goes to the first by name."""
    if len({source for source, _ in samples.children}) == 1:
        return samples
    parsed = [parse_labels(labels) for _, labels in samples.children]
    machine = [tuple(labels.get(key) for key in MACHINE_LABELS) for labels in parsed]
    told = np.bincount(samples.child, minlength=len(samples.children))
    by_machine: dict[tuple[str | None, ...], dict[str, int]] = {}
    for (source, _), of, count in zip(samples.children, machine, told, strict=True):
        counts = by_machine.setdefault(of, {})
        counts[source] = counts.get(source, 0) + int(count)
    chosen = {of: min(counts, key=lambda source: (-counts[source], source)) for of, counts in by_machine.items()}
    kept = np.array([chosen[of] == source for (source, _), of in zip(samples.children, machine, strict=True)])
    rows = kept[samples.child]
    return _Samples(samples.t_s[rows], samples.child[rows], samples.value[rows], samples.children)


def _growth_of(members: Sequence[_Samples], together: bool) -> Growth:
    """Steps of the children of all members, numbered on from one member to the next."""
    children = [child for samples in members for child in samples.children]
    owners = _numbered([(number, source, identity(parse_labels(labels)))
                        for number, samples in enumerate(members) for source, labels in samples.children])  # fmt: skip
    process = _numbered([(source, identity(parse_labels(labels))) for source, labels in children])
    offsets = np.cumsum([0, *(len(samples.children) for samples in members)])
    return growth(
        np.concatenate([samples.t_s for samples in members]),
        np.concatenate([samples.child + offset for samples, offset in zip(members, offsets, strict=False)]),
        np.concatenate([samples.value for samples in members]),
        owners,
        process if together else None,
    )


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _edge(text: str | None) -> float | None:
    """Upper edge of a bucket, from its label."""
    try:
        edge = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(edge) else edge


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    return {name: quantile(values, q) for name, q in QUANTILES.items()}
