"""The table of what can be seen, as text: units that people read, and nothing that a terminal would obey."""

import pytest
from rich.console import Console

from pinchpoint.coverage import Coverage, Missing, PageCoverage
from pinchpoint.report.telemetry_text import live_screen, survey_screen, trouble_text, value_text
from pinchpoint.seen import Absent, How, Row, SeenPage, Survey, Trouble

EVIL = "evil\x1b]0;title\x07[red]\u202e"


def row(
    series: str = "engine.requests_running",
    value: float | None = 3.0,
    unit: str = "requests",
    how: How = "now",
    per_s: float | None = None,
    source: str = "engine",
) -> Row:
    return Row("engine", series, unit, how, value, per_s, 1, source, "utilisation", "")


def survey(*rows: Row, pages: tuple[SeenPage, ...] = (), troubles: tuple[Trouble, ...] = ()) -> Survey:
    return Survey(rows, pages, (Absent("gateway", "give its URL."),), troubles, ("a note",), 5.0)


def printed(told: Survey, height: int | None = None) -> str:
    console = Console(width=100, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(survey_screen(told) if height is None else live_screen(told, height))
    return capture.get()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (row(), "3 requests"),
        (row(value=None), "–"),
        (row(value=0.125, unit="ratio"), "12.5 %"),
        (row(value=0.0321, unit="s"), "32.1 ms"),
        (row(value=3 * 2**30, unit="bytes"), "3 GiB"),
        (row(value=1.41e9, unit="Hz"), "1.41 GHz"),
        (row(value=262144.0, unit="flows"), "262,144 flows"),
        (row(value=385.0, unit="tokens", how="per second"), "385 tokens/s"),
        (row(value=2048.0, unit="bytes", how="per second"), "2 KiB/s"),
        (row(value=1.5, unit="s", how="per second"), "1.5 s/s"),
        (row(value=7.0, unit="1", how="per second"), "7/s"),
        (row(value=100.0, unit="tokens", how="total"), "100 tokens so far"),
        (row(value=0.2, unit="s", how="mean", per_s=4.0), "mean 200 ms, 4/s"),
        (row(value=0.2, unit="s", how="mean since start"), "mean since start 200 ms"),
        (row("engine.process_start_unix_s", 1.8e9, "s"), "2027-01-15 08:00:00 UTC"),
        (row("host.open_files_limit", 2.0**63, "files"), "no limit"),
    ],
)
def test_values_are_shown_in_units_that_people_read(given: Row, shown: str) -> None:
    assert value_text(given) == shown


def test_troubles_are_sentences() -> None:
    assert trouble_text(Trouble("engine", "scrape_failed", {"reason": "refused"}, 3)) == (
        "engine could not be read (nothing listens there), 3 times"
    )
    assert (
        trouble_text(Trouble("gpu", "scrape_failed", {"reason": "http_503"}, 1)) == "gpu could not be read (HTTP 503)"
    )


def page(*missing: Missing, title: str = "vLLM", strangers: tuple[str, ...] = ()) -> SeenPage:
    covered = Coverage("vllm", title, ("engine.requests_running",), missing, 3, ("vllm:new",), ())
    return SeenPage("http://127.0.0.1:8000/metrics", "engine", "vLLM", PageCoverage((covered,), strangers))


def test_what_is_missing_is_grouped_by_how_to_get_it() -> None:
    text = printed(
        survey(
            row(),
            pages=(
                page(
                    Missing("engine.a", "start it with --a"),
                    Missing("engine.b", "start it with --a"),
                    Missing("engine.c", None),
                    Missing("engine.d", "add FIELD_D to the file"),
                    Missing("engine.e", "add FIELD_E to the file"),
                    strangers=("somebody_elses_total",),
                ),
            ),
        )
    )
    assert "Start it with --a: engine.a, engine.b" in text
    assert "Add FIELD_D, FIELD_E to the file: engine.d, engine.e" in text
    assert "not used so far: engine.c" in text
    assert [word for word in ("1/6", "16.7 %", "50 %", "2/3") if word not in text] == []
    assert "somebody_elses_total" in text
    assert "gateway" in text and "Give its URL." in text
    assert "A note" in text


def test_sources_are_named_where_there_are_several() -> None:
    assert "engine-2" in printed(survey(row(), row(source="engine-2")))
    assert "engine-2" not in printed(survey(row(source="engine-2")))


def test_a_live_picture_fits_its_terminal() -> None:
    rows = tuple(row(f"engine.s{i}", float(i)) for i in range(100))
    assert len(printed(survey(*rows), 20).splitlines()) <= 20
    assert "100 series" in printed(survey(*rows), 20)


def test_hostile_text_stays_text() -> None:
    text = printed(
        survey(
            row(source=EVIL),
            row(),
            pages=(page(title=EVIL, strangers=(EVIL,)),),
            troubles=(Trouble(EVIL, "scrape_failed", {"reason": EVIL}, 1),),
        )
    )
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "[red]" in text
