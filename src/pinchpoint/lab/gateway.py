"""What may refuse a request before the engine sees it: a token bucket (429) and a limit on requests in flight (503).

Not the engine's own waiting line, which refuses nobody.
"""

import math

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.params import LabParams

TOO_MANY_REQUESTS = 429
SERVICE_UNAVAILABLE = 503

OVERLOAD_RETRY_AFTER_S = 1.0
"""A server that is full cannot know when it will not be; one second is the customary hint."""


class Refusal(msgspec.Struct, frozen=True):
    """before_api: the gateway answered, the API process never saw the request."""

    status: int
    retry_after_s: float
    message: str
    before_api: bool


class Gateway:
    """admit() before a request goes on, leave() exactly once for each that was admitted."""

    def __init__(self, params: LabParams) -> None:
        self._rate_rps = params.rate_limit_rps
        self._burst_requests = params.rate_limit_burst_requests
        self._limit = params.in_flight_limit
        self._bucket_requests = params.rate_limit_burst_requests
        self._filled_ns: int | None = None
        self.in_flight = 0

    def admit(self, t_ns: int) -> Refusal | None:
        """None lets the request pass. t_ns must not go back."""
        if self._rate_rps is not None:
            wait_s = self._take(t_ns, self._rate_rps)
            if wait_s > 0:
                retry_after_s = float(math.ceil(wait_s))  # the header carries whole seconds
                return Refusal(TOO_MANY_REQUESTS, retry_after_s, "rate limit reached for this key", True)
        if self._limit is not None and self.in_flight >= self._limit:
            message = f"{self.in_flight} requests in flight, the limit is {self._limit}"
            return Refusal(SERVICE_UNAVAILABLE, OVERLOAD_RETRY_AFTER_S, message, False)
        self.in_flight += 1
        return None

    def leave(self) -> None:
        self.in_flight -= 1

    def _take(self, t_ns: int, rate_rps: float) -> float:
        """Takes one request from the bucket; returns 0, or the seconds until there would be one."""
        if self._filled_ns is not None:
            filled = self._bucket_requests + (t_ns - self._filled_ns) / NS_PER_S * rate_rps
            self._bucket_requests = min(self._burst_requests, filled)
        self._filled_ns = t_ns
        if self._bucket_requests < 1:
            return (1 - self._bucket_requests) / rate_rps
        self._bucket_requests -= 1
        return 0.0
