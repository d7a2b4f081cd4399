"""What a URL is, before load goes to it. `probe` is the whole interface."""

from pinchpoint.probe.facts import probe

__all__ = ["probe"]
