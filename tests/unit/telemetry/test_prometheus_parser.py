"""The exposition parser against the reference parser, and against what real pages get wrong."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from pinchpoint.telemetry import prometheus
from pinchpoint.telemetry.prometheus import PrometheusParser

PAGES = sorted((Path(__file__).parents[2] / "data" / "metrics").glob("*.prom"))


def comparable(name: str, labels: dict[str, str], value: float) -> tuple[str, tuple[tuple[str, str], ...], str]:
    # The reference parser appends _total to counters that lack it.
    return name.removesuffix("_total"), tuple(sorted(labels.items())), repr(float(value))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_real_pages_parse_as_the_reference_parser_reads_them(path: Path) -> None:
    samples, malformed = PrometheusParser().parse(path.read_bytes())
    wanted = [s for family in text_string_to_metric_families(path.read_text()) for s in family.samples]
    assert malformed == 0
    assert sorted(comparable(*s) for s in samples) == sorted(comparable(s.name, s.labels, s.value) for s in wanted)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_second_scrape_reads_the_same_as_the_first(path: Path) -> None:
    parser = PrometheusParser()
    assert parser.parse(path.read_bytes()) == parser.parse(path.read_bytes())


names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", fullmatch=True)
label_names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
values = st.one_of(st.floats(), st.integers(-(10**9), 10**9).map(float))


def exposed(name: str, labels: dict[str, str], value: float) -> str:
    escaped = {k: v.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for k, v in labels.items()}
    inside = ",".join(f'{k}="{v}"' for k, v in escaped.items())
    number = (
        "NaN" if math.isnan(value) else "+Inf" if value == math.inf else "-Inf" if value == -math.inf else repr(value)
    )
    return f"{name}{{{inside}}} {number}" if labels else f"{name} {number}"


# Surrogates cannot be exposed in UTF-8.
label_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@given(st.lists(st.tuples(names, st.dictionaries(label_names, label_texts, max_size=3), values), max_size=6))
def test_what_was_exposed_is_read_back_whatever_the_labels_hold(rows: list[tuple[str, dict[str, str], float]]) -> None:
    parser = PrometheusParser()
    page = "\n".join(exposed(*row) for row in rows)
    for _ in range(2):  # the second time from remembered heads
        samples, malformed = parser.parse(page.encode())
        assert malformed == 0
        assert [(s.name, s.labels, repr(s.value)) for s in samples] == [(n, lab, repr(v)) for n, lab, v in rows]


@given(st.text())
def test_any_text_is_counted_line_by_line_and_never_fatal(text: str) -> None:
    samples, malformed = PrometheusParser().parse(text)
    lines = [line for line in (raw.strip() for raw in text.split("\n")) if line and not line.startswith("#")]
    assert len(samples) + malformed == len(lines)


@given(st.binary())
def test_any_bytes_are_survived(page: bytes) -> None:
    PrometheusParser().parse(page)


@pytest.mark.parametrize(
    "line",
    [
        "name",
        "name abc",
        "name 1 2 3",
        "1name 1",
        'name{a="1" 2',
        'name{a="1",a="2"} 3',
        "name{a=1} 2",
        "name{,} 2",
        "name 1_000",
        '{a="1"} 2',
        'name{"other",a="1"} 2',
        "<html>",
        "name{" + "x" * 70_000 + "} 1",
    ],
)
def test_a_malformed_line_is_counted_and_its_neighbours_are_read(line: str) -> None:
    samples, malformed = PrometheusParser().parse(f"before 1\n{line}\nafter 2\n")
    assert malformed == 1
    assert [sample.name for sample in samples] == ["before", "after"]


def test_timestamps_exemplars_and_the_end_mark_of_openmetrics_are_dropped() -> None:
    page = (
        "# TYPE d histogram\n"
        'd_bucket{le="0.1"} 8 1520879607.789 # {trace_id="a}b"} 0.067\n'
        'd_bucket{le="+Inf"} 9 1520879607.789\n'
        "d_count 9 1520879607.789\nd_sum 0.5 1520879607.789\n# EOF\n"
    )
    samples, malformed = PrometheusParser().parse(page)
    wanted = [s for family in openmetrics_families(page) for s in family.samples]
    assert malformed == 0
    assert sorted(comparable(*s) for s in samples) == sorted(comparable(s.name, s.labels, s.value) for s in wanted)


def test_crlf_quoted_names_and_trailing_commas_are_read() -> None:
    samples, malformed = PrometheusParser().parse('{"my.metric",a="1"} 2\r\nb{c="d",} 3\r\n')
    assert malformed == 0
    assert [tuple(sample) for sample in samples] == [("my.metric", {"a": "1"}, 2.0), ("b", {"c": "d"}, 3.0)]


def test_a_page_without_end_stops_at_the_sample_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_SAMPLES", 10)
    samples, malformed = PrometheusParser().parse("a 1\n" * 15)
    assert (len(samples), malformed) == (10, 5)


def test_memory_of_line_heads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "MAX_HEADS", 10)
    parser = PrometheusParser()
    for n in range(100):
        samples, _ = parser.parse(f'a{{n="{n}"}} {n}')
        assert samples == [("a", {"n": str(n)}, float(n))]
    assert len(parser._heads) <= 10
