"""What may refuse a request before the engine sees it: a token bucket (429) and a limit on requests in flight (503).

Not the engine's own waiting line, which refuses nobody. Time-outs and retries are carried out by the service.
"""

import math

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.params import LabParams

TOO_MANY_REQUESTS = 429
SERVICE_UNAVAILABLE = 503
GATEWAY_TIMEOUT = 504

OVERLOAD_RETRY_AFTER_S = 1.0
"""A server that is full cannot know when it will not be; one second is the customary hint."""


class Refusal(msgspec.Struct, frozen=True):
    """before_api: the gateway answered, the API process never saw the request."""

    status: int
    retry_after_s: float
    message: str
    before_api: bool


class RateLimit:
    """A token bucket in front of everything."""

    def __init__(self, params: LabParams) -> None:
        self._bucket_requests = params.rate_limit_burst_requests
        self._filled_ns: int | None = None
        self.change(params)

    def change(self, params: LabParams) -> None:
        self._rate_rps = params.rate_limit_rps
        self._burst_requests = params.rate_limit_burst_requests
        self._bucket_requests = min(self._bucket_requests, self._burst_requests)

    def admit(self, t_ns: int) -> Refusal | None:
        """None lets the request pass. t_ns must not go back."""
        if self._rate_rps is None:
            self._filled_ns = t_ns
            return None
        if self._filled_ns is not None:
            filled = self._bucket_requests + (t_ns - self._filled_ns) / NS_PER_S * self._rate_rps
            self._bucket_requests = min(self._burst_requests, filled)
        self._filled_ns = t_ns
        if self._bucket_requests < 1:
            wait_s = (1 - self._bucket_requests) / self._rate_rps
            retry_after_s = float(math.ceil(wait_s))  # the header carries whole seconds
            return Refusal(TOO_MANY_REQUESTS, retry_after_s, "rate limit reached for this key", True)
        self._bucket_requests -= 1
        return None


def too_many(in_flight: int, limit: int | None) -> Refusal | None:
    """What an API server with so many requests in flight says to one more."""
    if limit is None or in_flight < limit:
        return None
    message = f"{in_flight} requests in flight, the limit is {limit}"
    return Refusal(SERVICE_UNAVAILABLE, OVERLOAD_RETRY_AFTER_S, message, False)
