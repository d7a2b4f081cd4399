"""One door to the pages of all imitated engines."""

from collections.abc import Sequence
from typing import Literal

from pinchpoint.lab.metrics import EngineState
from pinchpoint.lab.pages import llamacpp, sglang, tgi, vllm
from pinchpoint.lab.pages.text import EPOCH_UNIX_S
from pinchpoint.lab.readings import ProcessReading

Dialect = Literal["vllm", "sglang", "tgi", "llama.cpp"]
Age = Literal["current", "old"]


def engine_page(
    dialect: Dialect,
    engines: Sequence[EngineState],
    process: ProcessReading | None = None,
    *,
    age: Age = "current",
    now_s: float = 0.0,
    epoch_unix_s: float = EPOCH_UNIX_S,
) -> str:
    """The metrics page of the engines behind one API server, in the text exposition format.

    engines: at least one, in the order of their indices. process: the API process itself, for engines whose page tells
    about it. age "old": the names of a version one or two years older (TGI has none). now_s: the lab's instant.
    """
    if dialect == "vllm":
        render = vllm.page if age == "current" else vllm.old_page
        return render(engines, process, epoch_unix_s, now_s)
    if dialect == "sglang":
        return sglang.page(engines) if age == "current" else sglang.old_page(engines)
    if dialect == "tgi":
        return tgi.page(engines)
    return llamacpp.page(engines) if age == "current" else llamacpp.old_page(engines)
