"""The HTTP API of a Prometheus server, as far as a run needs it: its clock, what it has under a selector, its samples.

Samples are asked for as they were stored: a range selector asked as an instant query gives each sample with the instant
of its scrape. `query_range` is the second choice, for servers and proxies that refuse the first: it gives the last
sample before each step, so a value may be a scrape interval older than it says, and one of a target that fell silent
without a mark is repeated for five minutes. A sample that Prometheus marked stale is in no answer.

What a server answers is a stranger's text: bounded, decoded into types, and quoted in short.
"""

import math
import os
import ssl
import statistics
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from pinchpoint.catalog import Catalog
from pinchpoint.clock import NS_PER_S, monotonic_ns, realtime_offset_ns
from pinchpoint.errors import UsageError
from pinchpoint.fetch import Answer, FetchError, bearer, exchange

TIMEOUT_S = 30.0
"""A query over a run takes a server well under a second; its own limit is 120 s (--query.timeout)."""
CLOCK_TIMEOUT_S = 5.0
CLOCK_QUESTIONS = 5
CLOCK_TICK_NS = 1_000_000
"""Prometheus tells instants in milliseconds."""
DATE_TICK_NS = NS_PER_S
MAX_ANSWER_BYTES = 32 << 20
MAX_SERIES = 20_000
"""Label sets under a selector; our bound. A vLLM replica has about 700, most of them buckets."""
NAMES_AT_ONCE = 40
MAX_POINTS = 10_000
"""Prometheus refuses a query_range of more than 11,000 points for each label set."""
CHUNK_S = 3600.0
LOOK_BACK_S = 600.0
"""Before a run, names and scrape intervals are looked for in so long a stretch."""
DEFAULT_INTERVAL_S = 15.0
"""Usual in Prometheus' own example; used where one sample of each series is all there is. Its default is 60."""
ALWAYS = ("up", "scrape_duration_seconds")
"""Of Prometheus itself, kept raw: whether and how fast a target answered."""
SHOWN_CHARS = 200
HTTP_OK, HTTP_REDIRECT, HTTP_BAD_REQUEST = 200, 300, 400
HTTP_UNAUTHORISED, HTTP_FORBIDDEN, HTTP_NOT_FOUND, HTTP_NO_METHOD = 401, 403, 404, 405


class PrometheusError(Exception):
    """No answer, or a refusal. reason: one word for an event; the text says what to do."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class Stored(NamedTuple):
    """One label set: metric with `__name__`, and its samples (seconds of the server's clock, value)."""

    metric: dict[str, str]
    samples: list[tuple[float, float]]


class Seen(NamedTuple):
    """What is there to be fetched: exposed names that the catalogue knows, targets, the usual time between scrapes."""

    names: int
    label_sets: int
    targets: tuple[str, ...]
    interval_s: float | None


class ServerClock(NamedTuple):
    """offset_ns: the server's wall clock minus our monotonic one. ahead_s: minus our wall clock. error_ns: bounds both
    but for the time between this look and a sample, in which the clocks may drift."""

    offset_ns: int
    error_ns: int
    ahead_s: float


class _Envelope(msgspec.Struct):
    status: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""
    errorType: str = ""
    warnings: list[str] = []


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []


class _Result(msgspec.Struct):
    resultType: str
    result: msgspec.Raw


def auth_headers(token_env: str | None, login_env: str | None) -> dict[str, str]:
    """The header that opens the server. token_env, login_env: names of environment variables with a bearer token, or
    with user:password. Raises UsageError when one is empty, both are given, or it cannot stand in a header."""
    if token_env and login_env:
        raise UsageError("a Prometheus server is asked with a token or with user and password; give one of the two")
    name = token_env or login_env
    if name is None:
        return {}
    secret = os.environ.get(name, "").strip()
    if not secret:
        raise UsageError(f"the environment variable {name} is empty; put what the Prometheus server wants into it")
    if token_env:
        return bearer(secret)
    if ":" not in secret:
        raise UsageError(f"the environment variable {name} must hold user:password, with a colon between")
    return {"Authorization": f"Basic {b64encode(secret.encode()).decode()}"}


class PrometheusServer:
    """A server and the part of it that belongs to the service. Asks nothing until it is told to."""

    def __init__(
        self,
        url: str,
        selector: str,
        catalog: Catalog,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """url: with the path under which `/api/v1` lies. selector: label matchers, with or without braces. Raises
        UsageError for a selector that names a metric or has no matcher."""
        self.url = url.rstrip("/")
        self.matchers = matchers(selector)
        self.catalog = catalog
        self._headers = dict(headers or {})
        self._tls = tls
        self._posts = True
        self._raw = True
        self.warnings: list[str] = []

    # -- questions ---------------------------------------------------------------------------------------------------

    def clock(self) -> ServerClock:
        """By Cristian's method: the answer lies between asking and having it. Raises PrometheusError."""
        best: ServerClock | None = None
        for _ in range(CLOCK_QUESTIONS):
            asked_ns = monotonic_ns()
            answer = self._exchange("query", {"query": "time()"}, CLOCK_TIMEOUT_S)
            answered_ns = monotonic_ns()
            told_ns, tick_ns = self._told_time(answer)
            error_ns = (answered_ns - asked_ns + tick_ns) // 2 + 1
            if best is None or error_ns < best.error_ns:
                offset_ns = told_ns + tick_ns // 2 - (asked_ns + answered_ns) // 2
                best = ServerClock(offset_ns, error_ns, (offset_ns - realtime_offset_ns()[0]) / NS_PER_S)
        assert best is not None
        return best

    def check(self) -> Seen:
        """What the last minutes hold, before a run. Raises UsageError with what to change when nothing will come."""
        try:
            clock = self.clock()
            end_s = (monotonic_ns() + clock.offset_ns) / NS_PER_S
            sets = self.label_sets(end_s - LOOK_BACK_S, end_s)
            interval_s = self.interval_s(sets, end_s - LOOK_BACK_S, end_s) if sets else None
        except PrometheusError as error:
            raise UsageError(str(error)) from None
        if not sets:
            raise UsageError(
                f"the Prometheus server {self.url} has no metric that Pinchpoint knows under {{{self.matchers}}} in "
                f"the last {LOOK_BACK_S / 60:.0f} minutes; look at its page /targets and choose another --selector"
            )
        return Seen(len({one["__name__"] for one in sets}), len(sets), targets_of(sets), interval_s)

    def label_sets(self, start_s: float, end_s: float) -> list[dict[str, str]]:
        """Label sets of known names under the selector, `__name__` among the labels. Raises PrometheusError."""
        span = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}"}
        found = self._ask("label/__name__/values", {"match[]": f"{{{self.matchers}}}", **span}, list[str], post=False)
        names = [name for name in sorted(set(found)) if name in ALWAYS or self.catalog.exposers(name)]
        sets: list[dict[str, str]] = []
        for group in groups(names):
            sets += self._ask("series", {"match[]": self._selector(group), **span}, list[dict[str, str]])
            if len(sets) > MAX_SERIES:
                words = (
                    f"{{{self.matchers}}} covers more than {MAX_SERIES} label sets; narrow --selector to the service"
                )
                raise PrometheusError("too_many_series", words)
        return [one for one in sets if "__name__" in one]

    def interval_s(self, sets: Sequence[Mapping[str, str]], start_s: float, end_s: float) -> float | None:
        """Usual time between scrapes, from the samples of one name; None where there are not two. Raises
        PrometheusError."""
        names = {one["__name__"] for one in sets}
        name = "up" if "up" in names else min(names)
        gaps = [
            after - before
            for stored in self.samples((name,), start_s, end_s, DEFAULT_INTERVAL_S)
            for (before, _), (after, _) in pairwise(stored.samples)
        ]
        return statistics.median(gaps) if gaps else None

    def samples(self, names: Sequence[str], start_s: float, end_s: float, step_s: float) -> Iterator[Stored]:
        """Samples in [start_s, end_s) of the server's clock, a stretch at a time. step_s: for query_range only. Raises
        PrometheusError; what was given before that is whole."""
        begin_s, chunk_s = start_s, min(CHUNK_S, MAX_POINTS * step_s)
        while begin_s < end_s:
            stop_s = min(begin_s + chunk_s, end_s)
            try:
                stored = self._stretch(names, begin_s, stop_s, step_s)
            except FetchError as error:
                if error.reason != "too_large" or chunk_s <= step_s:
                    raise self._unreachable(error) from None
                chunk_s /= 2
                continue
            for one in stored:
                inside = [(at_s, value) for at_s, value in one.samples if begin_s <= at_s < stop_s]
                if inside:
                    yield Stored(one.metric, inside)
            begin_s = stop_s

    # -- the HTTP API ------------------------------------------------------------------------------------------------

    def _stretch(self, names: Sequence[str], begin_s: float, stop_s: float, step_s: float) -> list[Stored]:
        """Raises FetchError when the answer does not come whole, PrometheusError for a refusal."""
        selector = self._selector(names)
        if self._raw:
            length_ms = math.ceil((stop_s - begin_s) * 1000) + 1
            question = {"query": f"{selector}[{length_ms}ms]", "time": f"{stop_s:.3f}"}
            try:
                return self._matrix("query", question)
            except PrometheusError as error:
                if error.reason not in ("bad_data", "execution", "http_400", "http_422"):
                    raise
                self._raw = False
        question = {"query": selector, "start": f"{begin_s:.3f}", "end": f"{stop_s:.3f}", "step": f"{step_s:.3f}"}
        return self._matrix("query_range", question)

    @property
    def exact(self) -> bool:
        """Whether samples carry the instants of their scrapes, and not those of steps."""
        return self._raw

    def _matrix(self, path: str, question: Mapping[str, str]) -> list[Stored]:
        result = self._data(self._exchange(path, question, TIMEOUT_S, whole=True), _Result)
        if result.resultType != "matrix":
            raise PrometheusError("not_prometheus", self._strange(f"a {result.resultType[:20]} for a matrix"))
        return [
            Stored(one.metric, [(at_s, number) for at_s, text in one.values if (number := _number(text)) is not None])
            for one in self._decode(result.result, list[_Series])
        ]

    def _selector(self, names: Sequence[str]) -> str:
        which = f'__name__="{names[0]}"' if len(names) == 1 else f'__name__=~"{"|".join(names)}"'
        return f"{{{which},{self.matchers}}}"

    def _ask(self, path: str, question: Mapping[str, str], kind: Any, post: bool = True) -> Any:
        try:
            return self._data(self._exchange(path, question, TIMEOUT_S, whole=True, post=post), kind)
        except FetchError as error:
            raise self._unreachable(error) from None

    def _exchange(
        self, path: str, question: Mapping[str, str], timeout_s: float, whole: bool = False, post: bool = True
    ) -> Answer:
        """POST, since a query may be longer than a URL may be; GET where the server or a proxy does not take POST."""
        url, form = f"{self.url}/api/v1/{path}", urlencode(question)
        try:
            if post and self._posts:
                headers = {**self._headers, "Content-Type": "application/x-www-form-urlencoded"}
                answer = self._once("POST", url, headers, timeout_s, form.encode())
                if answer.status not in (HTTP_NO_METHOD, HTTP_FORBIDDEN):
                    return self._whole(answer, whole)
                self._posts = False
            return self._whole(self._once("GET", f"{url}?{form}", self._headers, timeout_s, None), whole)
        except FetchError as error:
            if whole and error.reason == "too_large":
                raise
            raise self._unreachable(error) from None

    def _once(self, method: str, url: str, headers: dict[str, str], timeout_s: float, body: bytes | None) -> Answer:
        return exchange(
            method, url, headers=headers, timeout_s=timeout_s, max_bytes=MAX_ANSWER_BYTES, body=body, tls=self._tls
        )

    def _whole(self, answer: Answer, whole: bool) -> Answer:
        if whole and not answer.complete:
            raise FetchError("too_large", f"more than {MAX_ANSWER_BYTES >> 20} MiB")
        return answer

    def _data(self, answer: Answer, kind: Any) -> Any:
        """The data of an answer that says success. Raises PrometheusError with the server's own words else."""
        try:
            envelope = msgspec.json.decode(answer.body, type=_Envelope)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            envelope = _Envelope()
        if answer.status != HTTP_OK or envelope.status != "success":
            raise self._refusal(answer, envelope)
        for warning in envelope.warnings:
            if warning[:SHOWN_CHARS] not in self.warnings:
                self.warnings.append(warning[:SHOWN_CHARS])
        return self._decode(envelope.data, kind)

    def _decode(self, text: msgspec.Raw, kind: Any) -> Any:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PrometheusError("not_prometheus", self._strange(str(error)[:SHOWN_CHARS])) from None

    def _refusal(self, answer: Answer, envelope: _Envelope) -> PrometheusError:
        where = f"the Prometheus server {self.url}"
        if answer.status in (HTTP_UNAUTHORISED, HTTP_FORBIDDEN):
            words = f"{where} does not let us in (HTTP {answer.status}); give --prometheus-token-env or "
            return PrometheusError(f"http_{answer.status}", words + "--prometheus-login-env")
        if HTTP_REDIRECT <= answer.status < HTTP_BAD_REQUEST:
            words = f"{where} sends us elsewhere (HTTP {answer.status}), as a page for logging in does; "
            return PrometheusError(f"http_{answer.status}", words + "give the address behind it, and a token")
        if envelope.status == "error":
            said = " ".join(envelope.error.split())[:SHOWN_CHARS]
            kind = envelope.errorType if envelope.errorType.isidentifier() else f"http_{answer.status}"
            return PrometheusError(kind[:32], f"{where} refuses the query for {{{self.matchers}}}: {said}")
        if answer.status == HTTP_OK:
            return PrometheusError("not_prometheus", self._strange("no JSON of Prometheus' API"))
        path = "; give the address under which /api/v1 lies" if answer.status == HTTP_NOT_FOUND else ""
        return PrometheusError(f"http_{answer.status}", f"{where} answers HTTP {answer.status}{path}")

    def _unreachable(self, error: FetchError) -> PrometheusError:
        return PrometheusError(
            error.reason, f"the Prometheus server {self.url} cannot be asked ({error}); check --prometheus"
        )

    def _strange(self, what: str) -> str:
        return f"{self.url} does not answer as a Prometheus server ({what}); give the address under which /api/v1 lies"

    def _told_time(self, answer: Answer) -> tuple[int, int]:
        """The server's clock, and what it counts in. By its own answer, else by the header of any web server."""
        try:
            _, text = self._decode(self._data(answer, _Result).result, tuple[float, str])
            return int(float(text) * NS_PER_S), CLOCK_TICK_NS
        except (PrometheusError, ValueError, OverflowError) as error:
            try:
                date = parsedate_to_datetime(answer.headers["date"])
            except (KeyError, ValueError):
                date = None
            if date is None or answer.status != HTTP_OK:
                raise (
                    error
                    if isinstance(error, PrometheusError)
                    else PrometheusError("not_prometheus", self._strange("no time"))
                ) from None
            return int(date.timestamp()) * NS_PER_S, DATE_TICK_NS


def matchers(selector: str) -> str:
    """What stands between the braces of a selector. Raises UsageError."""
    text = selector.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1].strip()
    text = text.rstrip(", ")
    if not text or "=" not in text or "__name__" in text or "\n" in text:
        raise UsageError(
            f"the selector {selector!r} names no part of a service; give label matchers like "
            "'{namespace=\"llm\"}', without the name of a metric"
        )
    return text


def target_of(labels: Mapping[str, str]) -> tuple[str, str]:
    """Job and instance: what Prometheus scraped."""
    return labels.get("job", ""), labels.get("instance", "")


def targets_of(sets: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """Each target once, by its address."""
    return tuple(sorted({instance or job for job, instance in map(target_of, sets)}))


def groups(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Names that are asked for together."""
    for start in range(0, len(names), NAMES_AT_ONCE):
        yield names[start : start + NAMES_AT_ONCE]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
