"""Profiles of GPU work (PyTorch, Nsight Systems, DLProf, rocprof): where the time of a step goes."""

from pinchpoint.profiles.analyse import analyse
from pinchpoint.profiles.source import Limits

__all__ = ["Limits", "analyse"]
