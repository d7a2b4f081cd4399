"""Length distributions and the presets that name them."""

import tomllib
from functools import cache
from importlib.resources import files

import msgspec
import numpy as np

from pinchpoint.errors import UsageError
from pinchpoint.plan import LengthSpec, WorkloadSpec


class Preset(msgspec.Struct, frozen=True):
    description: str
    source: str
    input_tokens: LengthSpec
    output_tokens: LengthSpec


@cache
def presets() -> dict[str, Preset]:
    text = files("pinchpoint.workload").joinpath("presets.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Preset])


class Lengths(msgspec.Struct, frozen=True):
    """Both distributions of a workload, cut so that a request fits into the service's context."""

    input_tokens: LengthSpec
    output_tokens: LengthSpec


CONTEXT_MARGIN_TOKENS = 64
"""Left free for the chat template and for the error of a prompt whose tokens are estimated."""


def resolve_lengths(spec: WorkloadSpec, context_tokens: int | None) -> Lengths:
    """Raises UsageError for an unknown preset or lengths that cannot fit into the context."""
    preset = presets().get(spec.preset)
    if preset is None:
        raise UsageError(f"there is no workload {spec.preset!r}; choose from {', '.join(presets())}")
    lengths = Lengths(
        _scaled(preset.input_tokens, spec.input_tokens, spec.exact),
        _scaled(preset.output_tokens, spec.output_tokens, spec.exact),
    )
    if context_tokens is None:
        return lengths
    room = context_tokens - CONTEXT_MARGIN_TOKENS
    if lengths.input_tokens.min + lengths.output_tokens.min > room:
        raise UsageError(
            f"the service's context of {context_tokens} tokens is too small for workload {spec.preset!r}; "
            "give smaller --input-tokens and --output-tokens"
        )
    output_max = min(lengths.output_tokens.max, max(room // 2, room - lengths.input_tokens.max))
    input_max = min(lengths.input_tokens.max, room - output_max)
    return Lengths(_cut(lengths.input_tokens, input_max), _cut(lengths.output_tokens, output_max))


def _scaled(spec: LengthSpec, mean: int | None, exact: bool) -> LengthSpec:
    """The same shape around another mean, or no scatter at all."""
    if mean is None:
        return spec
    if exact:
        return LengthSpec(mean, 0.0, mean, mean)
    ratio = mean / spec.mean
    return LengthSpec(mean, spec.sigma, max(1, round(spec.min * ratio)), max(1, round(spec.max * ratio)))


def _cut(spec: LengthSpec, maximum: int) -> LengthSpec:
    return msgspec.structs.replace(spec, max=max(1, min(spec.max, maximum)), min=max(1, min(spec.min, maximum)))


def draw_lengths(spec: LengthSpec, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` lengths in tokens, int64. The location is chosen so that the uncut mean is `spec.mean`."""
    if spec.sigma == 0:
        return np.full(count, spec.mean, dtype=np.int64)
    location = np.log(spec.mean) - spec.sigma**2 / 2
    return np.clip(np.rint(rng.lognormal(location, spec.sigma, count)), spec.min, spec.max).astype(np.int64)
