"""The report in a real browser: charts are drawn, cursors and zoom are linked, nothing overflows, nothing executes."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.support.browser import CHROMIUM, Browser  # noqa: E402
from tests.support.runs import build_run, example_verdict, open_view  # noqa: E402

from pinchpoint.report.html import write_html  # noqa: E402

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.usefixtures("no_problems"),
]

TIMELINE = "pinchpointCharts.timeline"
INK = """[...document.querySelectorAll('.plot canvas')].map(canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let painted = 0;
  for (let i = 3; i < pixels.length; i += 4) painted += pixels[i] > 200;
  return painted;
})"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    view = open_view(build_run(folder / "run"))
    path = folder / "report.html"
    write_html(view, example_verdict(view), path)
    return path


def centre(browser: Browser, chart: int) -> tuple[float, float, float]:
    """Left edge, middle height and width of a timeline chart's plotting area, scrolled into view."""
    return tuple(
        browser.evaluate(
            f"""(() => {{ const over = {TIMELINE}[{chart}].over; over.scrollIntoView({{block: 'center'}});
            const box = over.getBoundingClientRect(); return [box.left, box.top + box.height / 2, box.width]; }})()"""
        )
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 400])
def test_every_chart_is_drawn_and_nothing_overflows(browser: Browser, report: Path, width: int, dark: bool) -> None:
    browser.open(report, width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    browser.settle()
    browser.settle()
    ink = browser.evaluate(INK)
    assert len(ink) == browser.evaluate("document.querySelectorAll('.plot').length") >= 14
    assert min(ink) > 300
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    scrolls_inside = ".scroll, nav, .stage-chips, .u-wrap, svg"
    beyond = f"""[...document.querySelectorAll('body *')].filter(e => !e.closest('{scrolls_inside}')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""
    assert browser.evaluate(beyond) == []


def test_pointing_at_one_chart_moves_the_cursor_of_all(browser: Browser, report: Path) -> None:
    browser.open(report, width=1440)
    left, y, width = centre(browser, 2)
    browser.mouse("mouseMoved", left + 0.6 * width, y)
    browser.settle()
    at = browser.evaluate(f"{TIMELINE}.map(c => c.posToVal(c.cursor.left, 'x'))")
    assert max(at) - min(at) < 0.5
    whole_s = browser.evaluate(f"{TIMELINE}[0].scales.x.max")
    assert at[0] == pytest.approx(0.6 * whole_s, rel=0.02)
    assert browser.evaluate("document.querySelector('.readout').textContent").startswith(f"{at[2]:.1f} s")


def test_dragging_over_one_chart_zooms_all_and_double_click_resets(browser: Browser, report: Path) -> None:
    browser.open(report, width=1440)
    whole = browser.evaluate(f"{TIMELINE}.map(c => [c.scales.x.min, c.scales.x.max])")
    left, y, width = centre(browser, 1)
    browser.mouse("mouseMoved", left + 0.25 * width, y)
    browser.mouse("mousePressed", left + 0.25 * width, y, clicks=1)
    browser.mouse("mouseMoved", left + 0.4 * width, y, held=True)
    browser.mouse("mouseMoved", left + 0.5 * width, y, held=True)
    browser.mouse("mouseReleased", left + 0.5 * width, y, clicks=1)
    browser.settle()
    zoomed = browser.evaluate(f"{TIMELINE}.map(c => [c.scales.x.min, c.scales.x.max])")
    assert all(span == zoomed[0] for span in zoomed)
    assert zoomed[0] == pytest.approx([0.25 * whole[0][1], 0.5 * whole[0][1]], rel=0.02)
    for clicks in (1, 2):
        browser.mouse("mousePressed", left + 0.5 * width, y, clicks=clicks)
        browser.mouse("mouseReleased", left + 0.5 * width, y, clicks=clicks)
    browser.settle()
    assert browser.evaluate(f"{TIMELINE}.map(c => [c.scales.x.min, c.scales.x.max])") == whole


def test_a_step_button_zooms_to_its_step_and_back(browser: Browser, report: Path) -> None:
    browser.open(report, width=1440)
    browser.evaluate("document.querySelectorAll('.stage-chips button')[3].click()")
    browser.settle()
    stage = browser.evaluate("JSON.parse(document.getElementById('chart-data').textContent).stages[3]")
    spans = browser.evaluate(f"{TIMELINE}.map(c => [c.scales.x.min, c.scales.x.max])")
    assert all(span == [stage["t0"], stage["t1"]] for span in spans)
    browser.evaluate("document.querySelector('.reset').click()")
    browser.settle()
    assert browser.evaluate(f"{TIMELINE}.every(c => c.scales.x.min === 0)")


def test_folded_charts_are_drawn_when_they_are_opened_and_share_cursor_and_zoom(browser: Browser, report: Path) -> None:
    browser.open(report, width=1440)
    folded = "document.querySelector('details[data-layer]')"
    assert browser.evaluate(f"{folded}.querySelectorAll('canvas').length") == 0
    before = browser.evaluate(f"{TIMELINE}.length")
    browser.evaluate("document.querySelectorAll('.stage-chips button')[3].click()")
    for opened in (True, False, True):
        browser.evaluate(f"{folded}.open = {str(opened).lower()}")
        browser.settle()
        browser.settle()
    plots = browser.evaluate(f"{folded}.querySelectorAll('.plot').length")
    assert browser.evaluate(f"{folded}.querySelectorAll('canvas').length") == plots > 0
    assert browser.evaluate(f"{TIMELINE}.length") == before + plots
    assert browser.evaluate(f"new Set({TIMELINE}.map(c => c.scales.x.min + ' ' + c.scales.x.max)).size") == 1


def test_each_layer_can_be_jumped_to(browser: Browser, report: Path) -> None:
    browser.open(report, width=1440)
    targets = browser.evaluate("[...document.querySelectorAll('nav.layers a')].map(a => a.hash)")
    assert len(targets) >= 7
    assert browser.evaluate(f"{targets}.every(hash => document.querySelector(hash))")


def test_charts_follow_the_width_of_the_window(browser: Browser, report: Path) -> None:
    browser.open(report, width=1440)
    browser.call("Emulation.setDeviceMetricsOverride", width=700, height=900, deviceScaleFactor=1, mobile=False)
    browser.settle()
    browser.settle()
    assert browser.evaluate("document.documentElement.scrollWidth") <= 700
    assert browser.evaluate(f"{TIMELINE}.every(c => c.width <= 700)")


def test_without_javascript_the_tables_are_there_and_the_charts_are_excused(browser: Browser, report: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.navigate", url=report.resolve().as_uri())
        browser.wait_for_load()
        text = browser.call("DOM.getOuterHTML", nodeId=browser.call("DOM.getDocument")["root"]["nodeId"])["outerHTML"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert "Charts need JavaScript" in text and "--max-num-seqs 16" in text


def test_report_prints(browser: Browser, report: Path, tmp_path: Path) -> None:
    browser.open(report, width=1440, dark=True)
    browser.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_text_from_a_hostile_service_does_not_execute(browser: Browser, tmp_path: Path) -> None:
    attack = "</script><script>window.owned=1;alert(1)</script><img src=http://127.0.0.1:9/x onerror=window.owned=1>"
    view = open_view(
        build_run(
            tmp_path / "run",
            steps=(("search", 4.0, 12.0),),
            model_name=attack,
            error_text=f"\"'>{attack}<svg/onload=window.owned=1>\u2028",
            reject_ratio=0.3,
        )
    )
    path = tmp_path / "report.html"
    write_html(view, example_verdict(view, headline=attack, notes=(attack,)), path)
    browser.open(path, width=1440)
    assert browser.evaluate("window.owned") is None
    assert browser.evaluate("document.images.length") == 0
    assert attack in browser.evaluate("document.body.innerText")
