"""Names that change between an engine and whoever reads its page, because something passes them on.

The page of an older version is another matter: `engine_page(..., age="old")` prints it.
"""

import re
from typing import Literal

Respelling = Literal["ray", "underscores"]
"""ray: Ray Serve, `vllm:x` becomes `ray_vllm_x`. underscores: OpenTelemetry's and other pipelines, which have no colon
in names, `sglang:x` becomes `sglang_x`."""

_NAME_BEGIN = re.compile(r"^((?:# (?:HELP|TYPE) )?)([a-z]+):", re.MULTILINE)


def respelled(page: str, how: Respelling) -> str:
    """The page with every name `engine:x` respelled. Names without a colon, labels and values stay as they are."""
    return _NAME_BEGIN.sub(r"\1ray_\2_" if how == "ray" else r"\1\2_", page)
