"""What the simulated machines show to whoever scrapes them: pages under the names of real engines and exporters.

Functions from counters and readings to text. `engine_page` imitates the engine, also in an older version; `dcgm.page`,
`npu.page`, `node.page` and `node.container_page` the exporters beside it. `respelled` renames a page's families as
something between engine and reader would. Nothing here simulates.
"""

from pinchpoint.lab.pages.engine import EPOCH_UNIX_S, Age, Dialect, engine_page
from pinchpoint.lab.pages.respelled import Respelling, respelled

__all__ = ["EPOCH_UNIX_S", "Age", "Dialect", "Respelling", "engine_page", "respelled"]
