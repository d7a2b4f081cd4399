"""From a plan's workloads to traffic classes: what each kind of request is made of, and how often it comes.

A class begins with a preset's and takes what the plan gives. Class ids are places in `Traffic.classes`: those of the
plan's workload first, then those of further workloads in the order in which stages name them.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.model import Slo
from pinchpoint.plan import (
    CLASSES_MAX,
    ClassSpec,
    ContentKind,
    DocumentsSpec,
    ImagesSpec,
    JointSpec,
    LengthSpec,
    Plan,
    PrefixSpec,
    WorkloadSpec,
)
from pinchpoint.slo import parse_slo, scoped, with_errors
from pinchpoint.workload.durations import parse_counts, parse_durations
from pinchpoint.workload.library import preset_named, presets

UNNAMED = "own"
"""Name of a class that has none and begins with no preset."""
OWN_SERVICES = ("custom", "plugin")
"""Targets of services that somebody wrote for themselves: their requests go where the template says, and not to the API
that a preset would name."""
CONTEXT_MARGIN_TOKENS = 64
"""Left free for the chat template and for the error of a prompt whose tokens are estimated."""

IMAGES_MAX = 64
PIXELS_MAX = 8192
"""A side of an image; services scale down what is larger."""


class TrafficClass(msgspec.Struct, frozen=True):
    """One kind of request, ready to be made.

    input_tokens: of one user's message, with its shared beginning. output_tokens: None where nothing is generated.
    joint: in place of both; later_joint: of the turns after the first. turns, think: laws as text. context_tokens: room
    for a whole request with its history and its answer, of which the oldest turns are left out when it grows beyond;
    None: not known. The rest is as in plan.ClassSpec.
    """

    name: str
    weight: float
    input_tokens: LengthSpec
    output_tokens: LengthSpec | None
    joint: JointSpec | None = None
    later_joint: JointSpec | None = None
    turns: str = "1"
    think: str = "0s"
    system_tokens: int = 0
    prefix: PrefixSpec | None = None
    documents: DocumentsSpec | None = None
    content: ContentKind = "prose"
    tools: int = 0
    schema: str | None = None
    images: ImagesSpec | None = None
    api: str | None = None
    slos: tuple[str, ...] = ()
    context_tokens: int | None = None
    templated: bool = True
    """Whether the service puts a chat template around the messages."""
    paired: bool = False
    """Whether the target reads the message once with each document, as rankers do."""
    generates: bool = True
    """Whether the target generates; else no output is asked, whatever the laws say."""

    @property
    def remembers(self) -> bool:
        """Whether requests carry what was said before."""
        return self.turns not in ("1", "constant:1")

    @property
    def mean_turns(self) -> float:
        return parse_counts(self.turns).mean


class Traffic(msgspec.Struct, frozen=True):
    """classes: by class_id. names: of the plan's workload, for reports. mixes: workload -> ids of its classes; "" is
    the plan's own."""

    classes: tuple[TrafficClass, ...]
    mixes: dict[str, tuple[int, ...]]

    def mix(self, workload: str | None) -> tuple[int, ...]:
        """Class ids of a stage's workload; None: of the plan's."""
        return self.mixes[workload or ""]

    def weights(self, mix: Sequence[int]) -> list[float]:
        """Shares of the classes of a mix, which add up to 1."""
        total = sum(self.classes[i].weight for i in mix)
        return [self.classes[i].weight / total for i in mix]

    def mean_output_tokens(self, mix: Sequence[int]) -> float:
        shares = self.weights(mix)
        return sum(share * mean_output(self.classes[i]) for share, i in zip(shares, mix, strict=True))

    def mean_input_tokens(self, mix: Sequence[int]) -> float:
        shares = self.weights(mix)
        return sum(share * mean_input(self.classes[i]) for share, i in zip(shares, mix, strict=True))


def mean_input(one: TrafficClass) -> float:
    """Tokens of a user's message, on average."""
    if one.joint is not None:
        return sum(one.joint.input_tokens) / len(one.joint.input_tokens)
    return one.input_tokens.mean


def mean_output(one: TrafficClass) -> float:
    if one.joint is not None:
        return sum(sum(bin_) / len(bin_) for bin_ in one.joint.output_tokens) / len(one.joint.output_tokens)
    return one.output_tokens.mean if one.output_tokens is not None else 0.0


def resolve(plan: Plan, context_tokens: int | None) -> Traffic:
    """Raises UsageError, with the place: an unknown preset, a law that cannot be read, lengths beyond the context."""
    classes: list[TrafficClass] = []
    mixes: dict[str, tuple[int, ...]] = {}
    own_service = plan.api is not None and plan.api.partition(":")[0] in OWN_SERVICES

    def add(name: str, spec: WorkloadSpec, where: str) -> None:
        with _at(where):
            made = resolve_workload(spec, context_tokens, own_service=own_service)
            first = len(classes)
            classes.extend(made)
            if len(classes) > CLASSES_MAX:
                raise UsageError(f"more than {CLASSES_MAX} classes; merge some")
            mixes[name] = tuple(range(first, len(classes)))

    add("", plan.workload, "workload")
    for i, stage in enumerate(plan.stages):
        name = stage.workload
        if name is None or name in mixes:
            continue
        spec = plan.workloads.get(name)
        if spec is None and name not in presets():
            known = ", ".join([*plan.workloads, *presets()])
            raise UsageError(f"stages[{i}].workload: there is no workload {name!r}; choose from {known}")
        add(name, spec or WorkloadSpec(name), f"workloads.{name}")
    names = [one.name for one in classes]
    owner = {i: name for name, ids in mixes.items() for i in ids}
    for i, name in enumerate(names):
        if name in names[:i]:
            names[i] = f"{owner[i]}/{name}" if owner[i] and f"{owner[i]}/{name}" not in names[:i] else f"{name} {i + 1}"
    renamed = tuple(msgspec.structs.replace(one, name=name) for one, name in zip(classes, names, strict=True))
    return Traffic(renamed, mixes)


def cuts(asked: Traffic, fitting: Traffic) -> list[str]:
    """A sentence for each class whose lengths were cut to the service's context. asked: resolved without a context."""
    found = []
    for one, cut in zip(asked.classes, fitting.classes, strict=True):
        before, after = _longest(one), _longest(cut)
        if after[0] < before[0] or after[1] < before[1]:
            found.append(
                f"class {one.name}: lengths were cut to the service's context of {cut.context_tokens} tokens, so no "
                f"message is longer than {after[0]} where up to {before[0]} were asked, and no answer longer than "
                f"{after[1]} ({before[1]} asked)"
            )
    return found


def _longest(one: TrafficClass) -> tuple[int, int]:
    """Tokens of the longest message, and of the longest answer."""
    if one.joint is not None:
        joints = [one.joint, *([one.later_joint] if one.later_joint is not None else [])]
        return max(j.input_tokens[-1] for j in joints), max(bin_[-1] for j in joints for bin_ in j.output_tokens)
    return one.input_tokens.max, one.output_tokens.max if one.output_tokens is not None else 0


def slos_of(plan: Plan, traffic: Traffic) -> tuple[Slo, ...]:
    """Those of the plan, then those of its classes; empty when nobody gave any. Raises UsageError for a class that is
    not in the plan, and for two that speak of the same."""
    found = [parse_slo(text) for text in plan.slos]
    names = [one.name for one in traffic.classes]
    for slo in found:
        if slo.scope is not None and slo.scope not in names:
            raise UsageError(f"SLO {slo.text!r}: there is no class {slo.scope!r}; choose from {', '.join(names)}")
    found += [scoped(parse_slo(text), one.name) for one in traffic.classes for text in one.slos]
    return with_errors(tuple(found))


def workload_title(plan: Plan) -> str:
    """For reports: the preset, or the names of the classes that were given."""
    given = plan.workload.classes
    if not given:
        return plan.workload.preset
    return " + ".join(one.name or one.preset or UNNAMED for one in given)


def resolve_workload(
    spec: WorkloadSpec, context_tokens: int | None, *, own_service: bool = False
) -> list[TrafficClass]:
    """The classes of one workload. own_service: no API that a preset names is meant. Raises UsageError as `resolve`,
    without the place."""
    given = spec.classes or preset_named(spec.preset).classes
    if own_service and not spec.classes:
        given = tuple(msgspec.structs.replace(one, api=None) for one in given)
    found = []
    for i, class_spec in enumerate(given):
        with _at(f"classes[{i}]" if spec.classes else spec.preset):
            found.append(_class(class_spec, spec, context_tokens, own_service=own_service))
    return found


def _class(given: ClassSpec, workload: WorkloadSpec, context_tokens: int | None, *, own_service: bool) -> TrafficClass:
    base: dict[str, Any] = {}
    if given.preset is not None:
        inner = preset_named(given.preset).classes
        if len(inner) != 1 or inner[0].preset is not None:
            raise UsageError(f"{given.preset!r} is itself a mix; name one of its classes' presets")
        base = _told(inner[0])
        if own_service:
            base.pop("api", None)
    own = _told(given)
    merged: dict[str, Any] = {**base, **{key: value for key, value in own.items() if key != "preset"}}
    for key, mean in (("input_tokens", workload.input_tokens), ("output_tokens", workload.output_tokens)):
        if mean is not None and (key == "input_tokens" or base.get(key) or own.get(key)):
            merged[key] = mean
            merged.pop("joint", None)
            merged.pop("later_joint", None)
    for key in ("input_tokens", "output_tokens"):
        merged[key] = _length(merged.get(key), base.get(key) or own.get(key), workload.exact)
    if merged["input_tokens"] is None:
        if merged.get("joint") is None:
            raise UsageError("input_tokens is missing; give it, a joint law, or a preset to begin with")
        merged["input_tokens"] = LengthSpec(1, 0.0, 1, 1)
    merged["name"] = given.name or given.preset or (UNNAMED if workload.classes else workload.preset)
    merged["turns"] = str(merged.get("turns", 1))
    found = msgspec.convert(msgspec.to_builtins(merged), TrafficClass)
    _check(found)
    return _cut(found, context_tokens)


def _told(spec: ClassSpec) -> dict[str, Any]:
    """What a class gives: everything that is not its default."""
    return {
        field.name: value
        for field in msgspec.structs.fields(ClassSpec)
        if (value := getattr(spec, field.name)) not in (None, "", ()) and field.name != "preset"
    }


def _length(given: int | LengthSpec | None, shape: int | LengthSpec | None, exact: bool) -> LengthSpec | None:
    """A law; a bare number is the mean of the shape that the preset has, or an exact length without one."""
    if not isinstance(given, int):
        return given
    if exact or not isinstance(shape, LengthSpec):
        return LengthSpec(given, 0.0, given, given)
    ratio = given / shape.mean
    return LengthSpec(given, shape.sigma, max(1, round(shape.min * ratio)), max(1, round(shape.max * ratio)))


def _check(found: TrafficClass) -> None:
    turns = parse_counts(found.turns)
    parse_durations(found.think)
    for text in found.slos:
        scoped(parse_slo(text), found.name)
    if turns.mean > 1 and found.output_tokens is None and found.joint is None:
        raise UsageError("a conversation needs answers; give output_tokens")
    if not 0 < found.weight < math.inf:
        raise UsageError(f"weight is {found.weight:g}; it must be a number above 0")
    prefix = found.prefix
    if prefix is not None and not (prefix.tokens >= 1 and prefix.pool >= 1 and 0 <= prefix.ratio <= 1):
        raise UsageError("a prefix has tokens and pool of at least 1 and a ratio from 0 to 1")
    if prefix is not None and not 0 <= prefix.skew < math.inf:
        raise UsageError(f"prefix.skew is {prefix.skew:g}; it must be a number from 0 on")
    if found.later_joint is not None and found.joint is None:
        raise UsageError("later_joint is of the turns after the first; give joint as well")
    for joint in (found.joint, found.later_joint):
        if joint is None:
            continue
        lists = [joint.input_tokens, *joint.output_tokens]
        if not joint.output_tokens or any(len(one) < 2 or list(one) != sorted(one) or one[0] < 1 for one in lists):
            raise UsageError("joint holds lists of at least two quantiles each, in ascending order and from 1 on")
    for what, law in (("input_tokens", found.input_tokens), ("output_tokens", found.output_tokens)):
        if law is not None and not (1 <= law.min <= law.max and law.mean >= 1 and 0 <= law.sigma < math.inf):
            raise UsageError(f"{what}: 1 <= min <= max, mean from 1 on and sigma from 0 on are needed")
    images = found.images
    if images is not None and not (
        1 <= images.count <= 64 and 1 <= images.width <= 8192 and 1 <= images.height <= 8192
    ):
        raise UsageError("images: 1 to 64 of them, and 1 to 8192 pixels in width and height")


def _cut(found: TrafficClass, context_tokens: int | None) -> TrafficClass:
    """Lengths that fit into the service's context beside the system prompt."""
    if context_tokens is None:
        return found
    room = context_tokens - CONTEXT_MARGIN_TOKENS - found.system_tokens
    if found.joint is not None:
        later = None if found.later_joint is None else _cut_joint(found.later_joint, room)
        fitted = _cut_joint(found.joint, room)
        return msgspec.structs.replace(found, joint=fitted, later_joint=later, context_tokens=context_tokens)
    inputs, outputs_law = found.input_tokens, found.output_tokens
    output_min, output_wanted = (outputs_law.min, outputs_law.max) if outputs_law is not None else (0, 0)
    if inputs.min + output_min > room:
        raise UsageError(
            f"the service's context of {context_tokens} tokens is too small for class {found.name!r}; "
            "give smaller --input-tokens and --output-tokens"
        )
    output_max = min(output_wanted, max(room // 2, room - inputs.max))
    input_max = min(inputs.max, room - output_max)
    return msgspec.structs.replace(
        found,
        input_tokens=_capped(inputs, input_max),
        output_tokens=_capped(outputs_law, output_max) if outputs_law is not None else None,
        context_tokens=context_tokens,
    )


def _cut_joint(joint: JointSpec, room: int) -> JointSpec:
    output_max = max(1, min(max(bin_[-1] for bin_ in joint.output_tokens), room // 2))
    input_max = max(1, room - output_max)
    outputs = tuple(tuple(min(n, output_max) for n in bin_) for bin_ in joint.output_tokens)
    return JointSpec(tuple(min(n, input_max) for n in joint.input_tokens), outputs)


def _capped(law: LengthSpec, maximum: int) -> LengthSpec:
    cap = max(1, maximum)
    return msgspec.structs.replace(law, max=min(law.max, cap), min=min(law.min, cap))


@contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
