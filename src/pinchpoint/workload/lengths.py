"""Laws of lengths: log-normal, or as lengths occur together in a trace."""

import numpy as np

from pinchpoint.plan import JointSpec, LengthSpec


def draw_lengths(spec: LengthSpec, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` lengths in tokens, int64. The location is chosen so that the uncut mean is `spec.mean`."""
    if spec.sigma == 0:
        return np.full(count, spec.mean, dtype=np.int64)
    location = np.log(spec.mean) - spec.sigma**2 / 2
    return np.clip(np.rint(rng.lognormal(location, spec.sigma, count)), spec.min, spec.max).astype(np.int64)


def joint_inputs(joint: JointSpec, u: np.ndarray) -> np.ndarray:
    """Input lengths at the probabilities u, int64, shape as u."""
    return _at(np.asarray(joint.input_tokens, float), u)


def joint_outputs(joint: JointSpec, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Output lengths at the probabilities v, each of the range of input lengths that its u lies in; int64."""
    ranges = len(joint.output_tokens)
    which = np.minimum((u * ranges).astype(np.int64), ranges - 1)
    found = np.empty(len(u), np.int64)
    for i, quantiles in enumerate(joint.output_tokens):
        mask = which == i
        found[mask] = _at(np.asarray(quantiles, float), v[mask])
    return found


def _at(quantiles: np.ndarray, u: np.ndarray) -> np.ndarray:
    """A straight line between neighbouring quantiles."""
    return np.rint(np.interp(u, np.linspace(0, 1, len(quantiles)), quantiles)).astype(np.int64)
