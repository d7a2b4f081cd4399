"""What the simulated machines show to whoever scrapes them: pages under the names of real engines and exporters.

Pure functions from counters and readings to text. `engine_page` imitates the engine; dcgm, npu and node the exporters
beside it; degraded spoils a page on its way. Nothing here simulates.
"""

from pinchpoint.lab.pages.engine import Age, Dialect, engine_page

__all__ = ["Age", "Dialect", "engine_page"]
