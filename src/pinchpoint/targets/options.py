"""Options of a target, as a plan's `api_options` gives them: known names, right types, errors in words."""

from typing import Any

from pinchpoint.errors import UsageError
from pinchpoint.targets.target import TargetSpec


class Options:
    """Of one target. All calls raise UsageError for a value of the wrong type."""

    def __init__(self, spec: TargetSpec) -> None:
        self._api = spec.api
        self._given = spec.options

    def text(self, name: str, default: str) -> str:
        value = self._given.get(name, default)
        if type(value) is int:  # a version, as a flag gives it
            return str(value)
        if not isinstance(value, str):
            raise self.error(name, "a text")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._given.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false")
        return value

    def count(self, name: str, default: int) -> int:
        """A whole number from 1."""
        value = self._given.get(name, default)
        if type(value) is not int or value < 1:
            raise self.error(name, "a whole number from 1")
        return value

    def counts(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers from 1, such as a shape; None when it is not given."""
        value = self._given.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not value or any(type(one) is not int or one < 1 for one in value):
            raise self.error(name, "a list of whole numbers from 1, such as [1, 224, 224, 3]")
        return tuple(value)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise self.error(name, f"one of {', '.join(choices)}")
        return value

    def table(self, name: str) -> dict[str, Any]:
        value = self._given.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "a table, such as {temperature = 1.0}")
        return value

    def error(self, name: str, wanted: str) -> UsageError:
        return UsageError(f"option {name} of {self._api} must be {wanted}; {self._given.get(name)!r} was given")
