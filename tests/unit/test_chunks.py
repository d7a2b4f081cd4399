"""The digest of token arrivals says what the arrivals themselves would say."""

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.chunks import BIN_NS, Arrivals, ChunkDigest
from pinchpoint.clock import NS_PER_S

T0_NS = 5 * NS_PER_S
instant = st.integers(T0_NS, T0_NS + 3 * NS_PER_S)
event = st.tuples(instant, st.integers(1, 5))
stream = st.tuples(st.lists(event, max_size=6).map(sorted), st.booleans())
"""Arrivals with their tokens, and whether the tokens are written down."""


def batches_of(streams: list[tuple[list[tuple[int, int]], bool]], rows: int) -> list[pa.RecordBatch]:
    """The streams as batches of so many rows, cut from one so that offsets do not begin at zero."""
    chunk_ns = pa.array([[t for t, _ in events] for events, _ in streams], pa.list_(pa.int64()))
    tokens = pa.array([[n for _, n in events] if told else None for events, told in streams], pa.list_(pa.int32()))
    whole = pa.record_batch({"chunk_ns": chunk_ns, "chunk_tokens": tokens})
    return [whole.slice(start, rows) for start in range(0, len(streams), rows)]


@given(streams=st.lists(stream, max_size=8), rows=st.integers(1, 8), at_s=st.floats(0, 4))
def test_a_digest_says_what_the_arrivals_say(
    streams: list[tuple[list[tuple[int, int]], bool]], rows: int, at_s: float
) -> None:
    digest = ChunkDigest(batches_of(streams, rows), T0_NS)
    assert digest.count.tolist() == [len(events) for events, _ in streams]
    gaps = [max((b - a for (a, _), (b, _) in itertools.pairwise(e)), default=None) for e, _ in streams]
    np.testing.assert_allclose(digest.gap_max_s, [np.nan if gap is None else gap / NS_PER_S for gap in gaps])
    arrived = [(t - T0_NS, n if told else 1) for events, told in streams for t, n in events]
    assert digest.tokens == sum(n for _, n in arrived)
    # Within the bin of the instant arrivals are taken as evenly spread.
    at_ns = at_s * NS_PER_S
    surely = sum(n for t, n in arrived if t < at_ns - BIN_NS)
    perhaps = sum(n for t, n in arrived if t < at_ns + BIN_NS)
    assert surely <= digest.tokens_until((at_s, at_s))[0] <= perhaps


def test_at_the_border_of_a_bin_the_count_is_exact() -> None:
    streams = [([(T0_NS + i * BIN_NS // 4, 1) for i in range(100)], False)]
    digest = ChunkDigest(batches_of(streams, 1), T0_NS)
    at_s = np.arange(26) * BIN_NS / NS_PER_S
    np.testing.assert_allclose(digest.tokens_until(at_s), np.arange(26) * 4)
    assert digest.tokens_until((-np.inf, np.inf)).tolist() == [0, 100]


def test_an_empty_run_has_no_tokens() -> None:
    digest = ChunkDigest([], T0_NS)
    assert (digest.tokens, len(digest.count), digest.tokens_until((0.0, 9.0)).tolist()) == (0, 0, [0.0, 0.0])


def test_tokens_that_do_not_fit_their_events_count_as_one_each() -> None:
    batch = pa.record_batch({"chunk_ns": [[T0_NS, T0_NS + 1], [T0_NS]], "chunk_tokens": [[7], [4]]})
    assert ChunkDigest([batch], T0_NS).tokens == 2 + 4


@given(
    groups=st.lists(st.lists(st.integers(-5, 10**6), max_size=10), max_size=5),
    bins_max=st.integers(1, 16),
)
def test_bins_widen_so_that_there_are_never_more_than_allowed(groups: list[list[int]], bins_max: int) -> None:
    arrivals = Arrivals(0, bin_ns=10, bins_max=bins_max)
    for group in groups:
        arrivals.add(np.array(group, np.int64), None)
    since = [t for group in groups for t in group if t >= 0]
    assert arrivals.counts.sum() == len(since)
    expected = np.bincount([t // arrivals.bin_ns for t in since], minlength=1)
    assert np.trim_zeros(arrivals.counts, "b").tolist() == np.trim_zeros(expected, "b").tolist()
    assert max((t // arrivals.bin_ns for t in since), default=0) < bins_max
    assert len(arrivals.counts) <= 2 * bins_max
