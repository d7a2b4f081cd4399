"""Source `null-request`: how long the service takes for requests that need no model.

When this grows with load, requests wait outside the engine: accept queue, event loop, proxy. Every page is asked for in
turn on a connection of its own and on one that is kept, so that a full accept queue or slow handshakes show as the
difference of the two. A failed request is an event and never a latency. Readings are not queued behind a slow one:
while one waits its turns are left out, so a stall of 3 s is one value of 3 s and not fifteen; read it as "at least one
request took this long".
"""

import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from pinchpoint.catalog import format_labels
from pinchpoint.clock import monotonic_ns
from pinchpoint.fetch import Answer, FetchError, Kept, bearer, get
from pinchpoint.telemetry.config import Reading, event, own

NULL_PERIOD_S = 0.2
"""Five requests a second: invisible to the service, enough for a median over five seconds of each kind."""
NULL_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 1 << 20
HTTP_ERROR_STATUS = 400
"""First status code that says the request failed (RFC 9110, section 15.5)."""
HTTP_SERVER_ERROR_STATUS = 500
"""Below it the request itself was at fault: the page is not there, or not for us."""


class NullRequest:
    """urls: pages that need no model, such as /health and /v1/models; one after the other, one at a time."""

    name = "null-request"

    def __init__(
        self, urls: str | Sequence[str], api_key: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._tls = tls
        self._headers = bearer(api_key)
        self._turns = [
            _Turn(url, kept) for url in ([urls] if isinstance(urls, str) else urls) for kept in (False, True)
        ]
        self._next = 0

    def read(self) -> tuple[int, list[Reading]]:
        """One request; the reading's instant is when it was sent."""
        turn = self._turns[self._next % len(self._turns)]
        self._next += 1
        sent_ns = monotonic_ns()
        try:
            answer = self._ask(turn)
        except FetchError as error:
            return sent_ns, [turn.failed(error.reason)]
        if answer.status >= HTTP_ERROR_STATUS:
            others = [other for other in self._turns if other.path != turn.path]
            if answer.status < HTTP_SERVER_ERROR_STATUS and others and not turn.answered:
                self._turns = others
                labels = format_labels({"path": turn.path, "reason": f"http_{answer.status}"})
                return sent_ns, [event("null_request_left_out", labels)]
            return sent_ns, [turn.failed(f"http_{answer.status}")]
        turn.answered = True
        readings = [
            own("probe.null_request_s", answer.total_s, turn.labels),
            own("probe.answer_s", answer.total_s - answer.connect_s, turn.labels),
        ]
        if answer.connect_s:
            readings.append(own("probe.connect_s", answer.connect_s, turn.labels))
        return sent_ns, readings

    def _ask(self, turn: "_Turn") -> Answer:
        if not turn.kept:
            return get(turn.url, self._headers, NULL_TIMEOUT_S, MAX_BODY_BYTES, self._tls)
        if turn.connection is None:
            turn.connection = Kept(turn.url, self._headers, self._tls)
        return turn.connection.get(NULL_TIMEOUT_S, MAX_BODY_BYTES)


class _Turn:
    """One page on one kind of connection."""

    def __init__(self, url: str, kept: bool) -> None:
        self.url = url
        self.path = urlsplit(url).path or "/"
        self.kept = kept
        self.answered = False
        self.connection: Kept | None = None
        self._told = {"path": self.path, "connection": "kept" if kept else "new"}
        self.labels = format_labels(self._told)

    def failed(self, reason: str) -> Reading:
        return event("null_request_failed", format_labels({**self._told, "reason": reason}))
