"""A labelled data set of virtual runs, to tune and to test a diagnosis on. `make_bench` is the door."""

from pinchpoint.labbench.make import make_bench
from pinchpoint.labbench.matrix import SIZES, Size

__all__ = ["SIZES", "Size", "make_bench"]
