"""Until when an answer has to come: timeouts per phase, and the patience of its user. No clocks, no sockets."""

from pinchpoint.clock import NS_PER_S
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.messages import Timeouts
from pinchpoint.schedule import NEVER


class Deadlines:
    """Which of them counts depends on how far the exchange has come."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._connect_ns = int(timeouts.connect_s * NS_PER_S)
        self._first_token_ns = int(timeouts.first_token_s * NS_PER_S) if timeouts.first_token_s else None
        self._between_ns = int(timeouts.between_tokens_s * NS_PER_S) if timeouts.between_tokens_s else None
        self._total_ns = int(timeouts.total_s * NS_PER_S)
        self._only_total = self._first_token_ns is None and self._between_ns is None

    def first(self, exchange: Exchange) -> tuple[int, str, str]:
        """(instant, status, phase) of the first deadline that the exchange may miss as it stands now."""
        at_ns, status, phase = exchange.scheduled_ns + self._total_ns, "timeout", "total"
        latest_ns = exchange.latest_ns
        if latest_ns is not None:
            if self._between_ns is not None and latest_ns + self._between_ns < at_ns:
                at_ns, phase = latest_ns + self._between_ns, "between-tokens"
        elif self._first_token_ns is not None and exchange.scheduled_ns + self._first_token_ns < at_ns:
            at_ns, phase = exchange.scheduled_ns + self._first_token_ns, "first-token"
        connecting_ns = exchange.connect_ns if exchange.connected_ns is None else None
        if connecting_ns is not None and connecting_ns + self._connect_ns < at_ns:
            at_ns, phase = connecting_ns + self._connect_ns, "connect"
        patience_ns = exchange.row.patience_ns
        if patience_ns != NEVER and exchange.scheduled_ns + patience_ns <= at_ns:
            at_ns, status, phase = exchange.scheduled_ns + patience_ns, "abandoned", ""
        return at_ns, status, phase

    def look_at_ns(self, exchange: Exchange, now_ns: int) -> int:
        """When the exchange must be looked at next: no later than it can miss any of its deadlines."""
        if self._only_total and exchange.row.patience_ns == NEVER and exchange.connect_ns is None:
            return exchange.scheduled_ns + self._total_ns  # by far the most
        at_ns = self.first(exchange)[0]
        if self._between_ns is not None:  # the first token may come at once
            at_ns = min(at_ns, now_ns + self._between_ns)
        return at_ns

    def words(self, exchange: Exchange, phase: str) -> str:
        """Why it ended; phase "" stands for the user's patience."""
        timeouts = self._timeouts
        return {
            "connect": f"no connection within {timeouts.connect_s:g} s",
            "first-token": f"no token within {timeouts.first_token_s or 0:g} s",
            "between-tokens": f"no further token within {timeouts.between_tokens_s or 0:g} s",
            "total": f"no whole answer within {timeouts.total_s:g} s",
            "": f"the user gave up after {exchange.row.patience_ns / NS_PER_S:.3g} s",
        }[phase]
