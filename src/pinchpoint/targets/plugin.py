"""Targets that others write in Python: `--api plugin:NAME`, or `--api plugin:package.module:make`.

A plug-in is a function `make(spec: TargetSpec) -> Target`. A distribution offers it under a name through the entry
point group `pinchpoint.targets`; without one it is named by its module and its own name. It is loaded here and again in
every load process. Whatever it gets wrong is told with the plug-in's name and line: before any load as a UsageError, in
an answer as a ValueError, so that a mistake in a plug-in ends one request and not the load.
"""

import importlib
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pinchpoint.errors import PinchpointError, UsageError
from pinchpoint.prompt import Prompt
from pinchpoint.targets.target import Chunk, Target, TargetSpec

GROUP = "pinchpoint.targets"
PREFIX = "plugin:"
ATTRIBUTES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "name": (str, "a text"),
    "path": (str, "a text that begins with a slash"),
    "stream": (bool, "true or false"),
    "framing": (str, "sse or ndjson"),
    "needs_finish": (bool, "true or false"),
    "generates": (bool, "true or false"),
    "headers": (tuple, "a tuple of (name, value)"),
}
METHODS = ("build", "parse_event", "parse_answer", "reader", "template")
FRAMINGS = ("sse", "ndjson")
TRIED = Prompt.of("Say hello.", 16, 3)
"""Every plug-in is asked to write it before any load."""


def make(spec: TargetSpec) -> Target:
    """The target of the plug-in that `spec.api` names. Raises UsageError for one that is missing or does not work."""
    named = spec.api.removeprefix(PREFIX)
    factory = _imported(named) if ":" in named else _installed(named)
    if not callable(factory):
        raise UsageError(f"the plug-in {named} is no function but {_kind(factory)}; it must be make(spec) -> Target")
    target = _called(named, "make", factory, spec)
    _check(named, target)
    guarded = PluginTarget(named, target)
    try:
        guarded.build(TRIED)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return guarded


class PluginTarget(Target):
    """A plug-in's target, whose mistakes are ValueErrors that say where they were made."""

    def __init__(self, plugin: str, target: Target) -> None:
        self._plugin = plugin
        self._target = target
        self.name = target.name
        self.path = target.path
        self.stream = target.stream
        self.framing = target.framing
        self.needs_finish = target.needs_finish
        self.generates = target.generates
        self.headers = target.headers

    def build(self, prompt: Prompt) -> bytes:
        body = self._guarded("build", self._target.build, prompt)
        if not isinstance(body, bytes):
            raise ValueError(f"the plug-in {self._plugin}: build returned {_kind(body)}, and must return bytes")
        return body

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        return self._chunk("parse_event", self._guarded("parse_event", self._target.parse_event, event, data))

    def parse_answer(self, body: bytes) -> Chunk:
        return self._chunk("parse_answer", self._guarded("parse_answer", self._target.parse_answer, body))

    def reader(self) -> Target:
        reader = self._guarded("reader", self._target.reader)
        return self if reader is self._target else PluginTarget(self._plugin, reader)

    def template(self, event: bytes) -> tuple[bytes, bytes] | None:
        return self._guarded("template", self._target.template, event)

    def _guarded(self, name: str, method: Callable[..., Any], *given: Any) -> Any:
        try:
            return method(*given)
        except ValueError:
            raise  # what the interface is: the answer is not what the API promises
        except Exception as error:  # foreign code may raise anything, and must not end a load process
            raise ValueError(_in_words(self._plugin, name, error)) from error

    def _chunk(self, name: str, chunk: object) -> Chunk:
        if not isinstance(chunk, Chunk):
            raise ValueError(f"the plug-in {self._plugin}: {name} returned {_kind(chunk)}, and must return a Chunk")
        return chunk


def installed() -> tuple[str, ...]:
    """Names of the plug-ins that distributions offer."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def _installed(name: str) -> Any:
    points = entry_points(group=GROUP, name=name)
    values = sorted({point.value for point in points})
    if not values:
        offered = ", ".join(installed())
        have = f"installed are {offered}" if offered else "none is installed"
        raise UsageError(
            f"there is no plug-in {name!r}: {have}; install the distribution that offers it in the entry point group "
            f"{GROUP}, or name its function, as in plugin:package.module:make"
        )
    if len(values) > 1:
        raise UsageError(
            f"several plug-ins are called {name!r}: {', '.join(values)}; name the function, as in plugin:{values[0]}"
        )
    return _loaded(name, next(iter(points)))


def _imported(named: str) -> Any:
    point = EntryPoint(name=named, value=named, group=GROUP)
    if not all(part.isidentifier() for half in named.split(":", 1) for part in half.split(".")):
        raise UsageError(f"{PREFIX}{named} names no function; write plugin:package.module:make")
    return _loaded(named, point)


def _loaded(name: str, point: EntryPoint) -> Any:
    module, _, attribute = point.value.partition(":")
    try:
        loaded: Any = importlib.import_module(module.strip())
    except PinchpointError:
        raise
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the plug-in {name} cannot be imported: there is no module {error.name!r}; install it, or put its "
            "directory on PYTHONPATH"
        ) from None
    except Exception as error:  # importing runs foreign code
        raise UsageError(_in_words(name, "import", error)) from error
    for part in attribute.strip().split("."):
        if not hasattr(loaded, part):
            raise UsageError(f"the plug-in {name}: there is no {attribute.strip()!r} in {module.strip()}")
        loaded = getattr(loaded, part)
    return loaded


def _called(name: str, what: str, factory: Callable[..., Any], spec: TargetSpec) -> Any:
    try:
        return factory(spec)
    except PinchpointError:
        raise  # a plug-in's own complaint about its options
    except Exception as error:  # foreign code, which may raise anything
        raise UsageError(_in_words(name, what, error)) from error


def _check(name: str, target: Any) -> None:
    for attribute, (kind, wanted) in ATTRIBUTES.items():
        if not hasattr(target, attribute):
            raise UsageError(
                f"the plug-in {name}: make returned {_kind(target)}, which has no {attribute}; "
                "let its class inherit pinchpoint.targets.target.Target, and set name, path and stream"
            )
        value = getattr(target, attribute)
        if not isinstance(value, kind) or (attribute == "path" and not value.startswith("/")):
            raise UsageError(f"the plug-in {name}: {attribute} is {value!r}, and must be {wanted}")
    if target.framing not in FRAMINGS:
        raise UsageError(f"the plug-in {name}: framing is {target.framing!r}, and must be one of {', '.join(FRAMINGS)}")
    if not all(
        isinstance(header, tuple) and len(header) == 2 and all(isinstance(part, str) for part in header)
        for header in target.headers
    ):
        raise UsageError(f"the plug-in {name}: headers is {target.headers!r}, and must be a tuple of (name, value)")
    for method in METHODS:
        if not callable(getattr(target, method, None)):
            raise UsageError(f"the plug-in {name}: {_kind(target)} has no method {method}")


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _in_words(name: str, what: str, error: Exception) -> str:
    """With the place of the last step that was the plug-in's own or below."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) != Path(__file__) and not frame.filename.startswith("<")]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"the plug-in {name}: {what} raised {type(error).__name__}: {error}{place}"
