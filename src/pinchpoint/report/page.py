"""What all pages share: assets inside the page, a policy that forbids it everything else, data for its scripts, and
text of strangers that stays text."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from pinchpoint.report.literal import visible

TEXT_LENGTH_MAX = 4000
"""Longest single text on a page; longer ones are cut with an ellipsis."""


@cache
def asset(name: str) -> str:
    return (files("pinchpoint.report") / "assets" / name).read_text(encoding="utf-8")


def csp_hash(text: str) -> str:
    """Source expression of a content security policy that allows this script and no other."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def embedded_json(data: Any) -> Markup:
    """JSON for a <script type="application/json"> block, with no character that HTML or old JavaScript could act on."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def template(name: str, filters: Mapping[str, Callable[..., Any]], names: Mapping[str, Any]) -> Template:
    """A template whose every printed text is escaped and loses its control characters."""
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_printable,
    )
    environment.filters.update(filters)
    environment.globals.update(names)
    return environment.get_template(name)


def _source(name: str) -> str:
    """Of a template, or of a part that another includes."""
    return (files("pinchpoint.report") / "templates" / name).read_text(encoding="utf-8")


def _printable(value: Any) -> Any:
    """Applied to everything a template prints: plain strings lose control characters, not the spaces around them."""
    if type(value) is not str:
        return value
    before, after = value[:1] == " ", value[-1:] == " "
    return " " * before + visible(value, length_max=TEXT_LENGTH_MAX) + " " * (after and len(value) > 1)
