"""The proxy in front of a service: handshakes on its one core, and answers held back until they are complete.

Not here: refusals, time-outs and retries (gateway.py).
"""

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.host import Process
from pinchpoint.lab.params import LabParams


class Proxy:
    """One process; instants in ns."""

    def __init__(self, params: LabParams) -> None:
        self.process = Process("proxy", 0, 40e6)
        self.change(params)

    def change(self, params: LabParams) -> None:
        self._tls_ns = round(params.path.tls_s * NS_PER_S)
        self.speaks_tls = params.path.tls_s > 0
        self.holds_back = params.proxy_buffering
        """An answer goes on only when it is complete."""

    def shake_hands(self, t_ns: int) -> int:
        """A client's hello has arrived; when the answer to it leaves."""
        began_ns = max(t_ns, self.process.busy_until_ns)
        self.process.account(began_ns, began_ns + self._tls_ns, self._tls_ns)
        return began_ns + self._tls_ns
