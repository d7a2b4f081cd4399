"""Source `null-request`: how long the service takes for a request that needs no model.

When this grows with load, requests wait outside the engine: accept queue, event loop, proxy. A failed request is an
event and never a latency. Readings are not queued behind a slow one: while one waits its turns are left out, so a
stall of 3 s is one value of 3 s and not six; read it as "at least one request took this long".
"""

import ssl

from pinchpoint.catalog import format_labels
from pinchpoint.clock import monotonic_ns
from pinchpoint.fetch import FetchError, bearer, get
from pinchpoint.telemetry.config import Reading, event, own

NULL_PERIOD_S = 0.5
"""Two requests a second: invisible to the service, enough for a median over a 10 s window."""
NULL_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 1 << 20
HTTP_ERROR_STATUS = 400
"""First status code that says the request failed (RFC 9110, section 15.5)."""


class NullRequest:
    name = "null-request"

    def __init__(self, url: str, api_key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._url = url
        self._tls = tls
        self._headers = bearer(api_key)

    def read(self) -> tuple[int, list[Reading]]:
        """One request; the reading's instant is when it was sent."""
        sent_ns = monotonic_ns()
        try:
            response = get(self._url, self._headers, NULL_TIMEOUT_S, MAX_BODY_BYTES, self._tls)
        except FetchError as error:
            return sent_ns, [event("null_request_failed", format_labels({"reason": error.reason}))]
        if response.status >= HTTP_ERROR_STATUS:
            return sent_ns, [event("null_request_failed", format_labels({"reason": f"http_{response.status}"}))]
        return sent_ns, [
            own("probe.null_request_s", response.total_s),
            own("probe.null_connect_s", response.connect_s),
        ]
