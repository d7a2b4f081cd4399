"""What a rule is: header, clues, outcome; discovery of rule modules; the documentation page of a rule.

A rule is a module in `rules/` named after its code and name. It carries `RULE` and `evaluate(features) -> Outcome`, and
its docstring is its documentation. There is no central list: a file that is there counts.

A rule answers with one of three values: it fires, it stays silent, or it could not look. Which of the first two is
decided from the weighed clues (`rank`), never by a missing reading.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Literal

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.model import Evidence, Layer, Remedy

if TYPE_CHECKING:
    from pinchpoint.diagnose.features import Features

JUDGEMENT = "engineering judgement; an odds factor, not a measured frequency"
"""Source of likelihood ratios that nobody has measured on a fleet."""


class Param(msgspec.Struct, frozen=True):
    """A number that a rule depends on. `source` says why it is this number."""

    value: float
    unit: str
    source: str


def odds(ratio: float, source: str = JUDGEMENT) -> Param:
    """A likelihood ratio P(clue | cause) / P(clue | another cause)."""
    return Param(ratio, "likelihood ratio", source)


class RemedySpec(msgspec.Struct, frozen=True):
    """A remedy as data. `flags` maps an engine (or "any") to its exact flag; `{name}` is filled from Outcome.values.

    A remedy whose flag needs a value that could not be derived is given with the placeholder in capitals. An engine
    without an entry gets the action alone; with `only_engines` the remedy is left out there.
    """

    action: str
    flags: dict[str, str] = {}
    effect: str = ""
    only_engines: bool = False


class Rule(msgspec.Struct, frozen=True):
    """Header of a rule.

    needs: canonical series that the rule reads, most telling first; each one that is absent lowers the ceiling of
    confidence. explains: the SLO metrics whose misses this cause accounts for. engine_metrics: whether the missing
    readings would come from the engine's metrics page, which decides how the user is told to get them.
    """

    code: str
    name: str
    title: str
    layer: Layer
    kind: Literal["fault", "physical-limit", "healthy", "load-generator"]
    needs: tuple[str, ...]
    params: dict[str, Param]
    remedies: tuple[RemedySpec, ...]
    confirm: str
    explains: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        return self.params[name].value

    def ln(self, name: str) -> float:
        """Natural log of a likelihood ratio."""
        return math.log(self.params[name].value)

    def source(self, name: str) -> str:
        return self.params[name].source


class Clue(msgspec.Struct, frozen=True):
    """Evidence with the group it belongs to. Clues of one group see the same fact and are not added up."""

    group: str
    evidence: Evidence


def clue(
    group: str,
    strength: float,
    statement: str,
    *,
    series: tuple[str, ...] = (),
    observed: float | None = None,
    reference: float | None = None,
    unit: str = "",
    source: str = "",
    window: str = "",
) -> Clue:
    return Clue(group, Evidence(statement, strength, series, observed, reference, unit, source, window))


class Outcome(msgspec.Struct, frozen=True):
    """What a rule saw.

    not_evaluable: why the rule could not look, with `missing` naming the series; then the clues do not count.
    veto: why the cause is impossible in this run whatever the clues say; the rule is then silent.
    values: numbers for the remedies. title: the rule's title with the numbers of this run.
    """

    clues: tuple[Clue, ...] = ()
    missing: tuple[str, ...] = ()
    not_evaluable: str = ""
    veto: str = ""
    values: dict[str, str] = {}
    title: str = ""


class LoadedRule(msgspec.Struct, frozen=True):
    module: str
    rule: Rule
    evaluate: "Callable[[Features], Outcome]"
    doc: str


def ramp(x: float, low: float, high: float, at_low: float, at_high: float) -> float:
    """Straight line from (low, at_low) to (high, at_high), level outside. Evidence does not jump at a threshold."""
    share = min(max((x - low) / (high - low), 0.0), 1.0)
    return at_low + share * (at_high - at_low)


@cache
def load_rules() -> tuple[LoadedRule, ...]:
    """All rules, in order of their code."""
    from pinchpoint.diagnose import rules

    loaded: list[LoadedRule] = []
    for info in pkgutil.iter_modules(rules.__path__):
        module = importlib.import_module(f"{rules.__name__}.{info.name}")
        loaded.append(LoadedRule(info.name, module.RULE, module.evaluate, module.__doc__ or ""))
    return tuple(sorted(loaded, key=lambda entry: entry.rule.code))


def module_name(rule: Rule) -> str:
    """The file that a rule must live in."""
    return f"{rule.code.lower()}_{rule.name.replace('-', '_')}"


def remedies_for(rule: Rule, engine: str, values: dict[str, str]) -> tuple[Remedy, ...]:
    """The rule's remedies for one engine, with derived values filled in."""

    class Placeholders(dict[str, str]):
        def __missing__(self, key: str) -> str:
            return key.upper()

    filled = Placeholders(values)
    result: list[Remedy] = []
    for spec in rule.remedies:
        flag = spec.flags.get(engine, spec.flags.get("any"))
        if flag is None and spec.only_engines:
            continue
        known = all(name in values for name in _placeholders(spec.effect))
        result.append(
            Remedy(
                action=spec.action.format_map(filled),
                flag=flag.format_map(filled) if flag else None,
                predicted_effect=spec.effect.format_map(values) if known else "",
            )
        )
    return tuple(result)


def _placeholders(text: str) -> list[str]:
    import string

    return [name for _, name, _, _ in string.Formatter().parse(text) if name]


def rule_page(code: str) -> str:
    """Documentation of one rule as Markdown. Raises UsageError naming the known codes."""
    found = next((entry for entry in load_rules() if entry.rule.code == code.upper()), None)
    if found is None:
        known = ", ".join(entry.rule.code for entry in load_rules())
        raise UsageError(f"there is no rule {code!r}; the rules are {known}")
    rule = found.rule
    lines = [
        f"# {rule.code} {rule.name}",
        "",
        "| | |",
        "|---|---|",
        f"| title | {rule.title} |",
        f"| layer | {rule.layer} |",
        f"| kind | {rule.kind} |",
        f"| reads | {', '.join(rule.needs) or 'the request records alone'} |",
        f"| explains misses of | {', '.join(rule.explains) or '-'} |",
        f"| to confirm | {rule.confirm} |",
        "",
        found.doc.strip(),
        "",
        "## Numbers",
        "",
        "| name | value | unit | source |",
        "|---|---|---|---|",
        *(f"| {name} | {p.value:g} | {p.unit} | {p.source} |" for name, p in rule.params.items()),
        "",
        "## Remedies",
        "",
    ]
    for spec in rule.remedies:
        lines.append(f"- {spec.action}")
        lines += [f"  - {engine}: `{flag}`" for engine, flag in spec.flags.items()]
    return "\n".join(lines) + "\n"
