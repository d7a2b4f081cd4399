"""Complete runs in virtual time: the lab's service on a simulated clock. `run_virtual` is the door."""

from pinchpoint.synth.run import run_virtual

__all__ = ["run_virtual"]
