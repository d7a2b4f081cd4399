"""Path expressions: where in a decoded JSON answer a value lies. A small part of JSONPath (RFC 9535).

    $                   the whole answer
    usage.output        a member of a member; a leading `$.` may stand before any path
    ["odd name"].x      a member whose name holds more than letters, digits, `_` and `-`
    choices[0].text     an element of a list; `[-1]` is the last
    items[*].text       every element, or every member of an object; what they yield is put together

A path yields no value, one, or several. No filters, no slices, no recursive descent: those are for searching, and
here it is known where things stand.
"""

import json
import re
from typing import Any

WHOLE = "$"
_STEP = re.compile(
    r"""\.?(?P<name>[^\W\d][\w-]*)      # a member by its plain name
    |\[(?P<index>-?\d+)\]               # an element
    |\[(?P<every>\*)\]                  # all of them
    |\[(?P<quoted>"(?:[^"\\]|\\.)*")\]  # a member by any name""",
    re.VERBOSE,
)
_EVERY = object()
NAMES_TOLD_MAX = 12
"""Members of an object that an error lists; more are not read."""


class Path:
    """A compiled path. `text` is the expression as it was written. Raises ValueError for one that is none."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.steps: tuple[Any, ...] = _compiled(text)
        """Names (str), indexes (int), or the mark of `[*]`."""

    @property
    def whole(self) -> bool:
        return not self.steps

    def find(self, document: Any) -> list[Any]:
        """The values that lie there; empty when nothing does. A null that is there is a value."""
        found = [document]
        for step in self.steps:
            found = [value for parent in found for value in _children(parent, step)]
        return found

    def first(self, document: Any) -> Any:
        """The first value that is no null; None when there is none."""
        return next((value for value in self.find(document) if value is not None), None)

    def missing(self, document: Any) -> str:
        """Why `find` yields nothing, in words: how far the path goes, and what is there instead."""
        found = [document]
        walked = WHOLE
        for step in self.steps:
            further = [value for parent in found for value in _children(parent, step)]
            if not further:
                said = "element" if step is _EVERY else f"element {step}" if isinstance(step, int) else repr(step)
                return f"{self.text!r} matches nothing: at {walked} there is no {said}, but {_told(found)}"
            found = further
            walked += "[*]" if step is _EVERY else f"[{step}]" if isinstance(step, int) else f".{step}"
        return f"{self.text!r} matches nothing"


def _compiled(text: str) -> tuple[Any, ...]:
    rest = text.strip()
    if rest == WHOLE:
        return ()
    position = 1 if rest.startswith(("$.", "$[")) else 0
    steps: list[Any] = []
    while position < len(rest):
        match = _STEP.match(rest, position)
        plain_after_step = match is not None and match["name"] is not None and steps and rest[position] != "."
        if match is None or plain_after_step:
            raise ValueError(
                f"{text!r} is no path: {rest[position:]!r} cannot stand at character {position + 1}; "
                'write for example choices[0].text, usage["output tokens"] or items[*].text'
            )
        position = match.end()
        if match["name"] is not None:
            steps.append(match["name"])
        elif match["index"] is not None:
            steps.append(int(match["index"]))
        elif match["every"] is not None:
            steps.append(_EVERY)
        else:
            try:
                steps.append(json.loads(match["quoted"]))
            except json.JSONDecodeError:
                raise ValueError(f"{text!r} is no path: {match['quoted']} is no JSON string") from None
    if not steps:
        raise ValueError(f"an empty path says nothing; write {WHOLE} for the whole answer")
    return tuple(steps)


def _children(parent: Any, step: Any) -> list[Any]:
    if step is _EVERY:
        return parent if isinstance(parent, list) else list(parent.values()) if isinstance(parent, dict) else []
    if isinstance(step, int):
        return [parent[step]] if isinstance(parent, list) and -len(parent) <= step < len(parent) else []
    return [parent[step]] if isinstance(parent, dict) and step in parent else []


def _told(found: list[Any]) -> str:
    """What stands where something else was looked for."""
    value = found[0] if found else None
    match value:
        case dict():
            names = ", ".join(list(value)[:NAMES_TOLD_MAX])
            return f"an object with {names}" if names else "an empty object"
        case list():
            return f"a list of {len(value)}"
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case _:
            return "a number"
