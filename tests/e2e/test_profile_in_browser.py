"""The page of a profile in a real browser: pictures are drawn, zoom and search work, nothing overflows or executes."""

import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.support.browser import CHROMIUM, Browser  # noqa: E402

from pinchpoint.profiles import analyse  # noqa: E402
from pinchpoint.report.profile_html import write_profile_page  # noqa: E402

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.usefixtures("no_problems"),
]

DATA = ROOT / "tests" / "data" / "profiles"
FLAME, TIME = "pinchpointProfile.flames[0]", "pinchpointProfile.times[0]"
INK = """(() => { const canvas = document.querySelector('.large'), context = canvas.getContext('2d');
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set();
  for (let i = 0; i < pixels.length; i += 4) seen.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
  return seen.size; })()"""
BEYOND = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, nav, .stage-chips, svg, .flame')
  && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className || e.tagName)"""
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "bert.html"
    write_profile_page(analyse([DATA / "h100_bert-small.json.gz"]), path)
    return path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 400])
def test_pictures_are_drawn_and_nothing_overflows(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.evaluate(INK) > 8
    assert browser.evaluate("[...document.querySelectorAll('.flame button')].filter(b => !b.hidden).length") > 8
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(BEYOND) == []


@pytest.mark.parametrize(
    "name",
    [
        "vllm_cpu_tiny_llama.json.gz",
        "nsys_2gpu_excerpt.sqlite.gz",
        "nsys_kern_sum.csv",
        "mi300x_vllm_decode_cudagraph.json.gz",
        "rocprofv3_excerpt.json.gz",
    ],
)
def test_every_format_has_a_page_that_works(browser: Browser, tmp_path: Path, name: str) -> None:
    write_profile_page(analyse([DATA / name]), tmp_path / "page.html")
    browser.open(tmp_path / "page.html", width=400)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    assert browser.evaluate("document.querySelector('h1').textContent.length") > 10


def test_a_box_fills_the_width_when_it_is_clicked_and_gives_it_back(browser: Browser, page: Path) -> None:
    browser.open(page, width=1200)
    row = browser.evaluate(f"{FLAME}.rows.filter(r => r.level === 'category').sort((a, b) => b.ns - a.ns)[0].i")
    width = f"parseFloat({FLAME}.rows[{row}].box.style.width.match(/[0-9.]+/)[0])"
    before = browser.evaluate(width)
    assert before < 99
    browser.evaluate(f"{FLAME}.rows[{row}].box.click()")
    assert browser.evaluate(width) == pytest.approx(100)
    assert browser.evaluate("document.querySelectorAll('.crumbs button').length") >= 2
    browser.evaluate("document.querySelector('.crumbs button').click()")
    assert browser.evaluate(width) == pytest.approx(before)


def test_children_lie_within_their_box(browser: Browser, page: Path) -> None:
    browser.open(page, width=1200)
    outside = f"""{FLAME}.rows.filter(r => r.parent >= 0).filter(r => {{ const p = {FLAME}.rows[r.parent];
        return r.left < p.left - 1 || r.left + r.ns > p.left + p.ns * 1.000001 + r.children.length + 5; }}).length"""
    assert browser.evaluate(outside) == 0


def test_search_says_how_much_time_it_found_and_marks_the_boxes(browser: Browser, page: Path) -> None:
    browser.open(page, width=1200)
    typed = """(text => { const field = document.querySelector('.find input'); field.value = text;
        field.dispatchEvent(new Event('input')); return document.querySelector('.told').textContent; })"""
    assert "Nothing found" in browser.evaluate(f"{typed}('no such kernel')")
    assert browser.evaluate("document.querySelectorAll('.flame .hit').length") == 0
    told = browser.evaluate(f"{typed}('gemm')")
    assert "of all in" in told and "gemm" in told
    assert browser.evaluate("document.querySelectorAll('.flame .hit').length") > 0
    browser.evaluate(f"{typed}('')")
    assert browser.evaluate("document.querySelectorAll('.flame .hit, .flame .dim').length") == 0


def test_dragging_over_the_timeline_zooms_and_double_click_shows_the_whole(browser: Browser, page: Path) -> None:
    browser.open(page, width=1200)
    left, y, width = browser.evaluate(
        """(() => { const c = document.querySelector('.large'); c.scrollIntoView({block: 'center'});
        const box = c.getBoundingClientRect(); return [box.left, box.top + box.height / 2, box.width]; })()"""
    )
    whole = browser.evaluate(f"{TIME}.full.to")
    browser.mouse("mouseMoved", left + 0.25 * width, y)
    browser.mouse("mousePressed", left + 0.25 * width, y, clicks=1)
    browser.mouse("mouseMoved", left + 0.4 * width, y, held=True)
    browser.mouse("mouseMoved", left + 0.5 * width, y, held=True)
    browser.mouse("mouseReleased", left + 0.5 * width, y, clicks=1)
    browser.settle()
    view = browser.evaluate(f"{TIME}.view()")
    assert (view["from"] / whole, view["to"] / whole) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.01))
    browser.evaluate("document.querySelector('[data-act=whole]').click()")
    assert browser.evaluate(f"{TIME}.view()") == {"from": 0, "to": whole}


def test_keys_move_and_zoom_the_timeline_within_its_bounds(browser: Browser, page: Path) -> None:
    browser.open(page, width=1200)
    press = "(key => document.querySelector('.large').dispatchEvent(new KeyboardEvent('keydown', {key})))"
    whole = browser.evaluate(f"{TIME}.full.to")
    for key in ("+", "ArrowRight"):
        browser.evaluate(f"{press}('{key}')")
    view = browser.evaluate(f"{TIME}.view()")
    assert view["to"] - view["from"] == pytest.approx(whole / 2)
    for _ in range(20):
        browser.evaluate(f"{press}('ArrowRight')")
    assert browser.evaluate(f"{TIME}.view()")["to"] == pytest.approx(whole)
    for _ in range(60):
        browser.evaluate(f"{press}('+')")
    assert browser.evaluate(f"{TIME}.view().to - {TIME}.view().from") > 0


def test_pointing_at_work_says_what_it_is(browser: Browser, page: Path) -> None:
    browser.open(page, width=1200)
    x, y = browser.evaluate(
        f"""(() => {{ const c = document.querySelector('.large'); c.scrollIntoView({{block: 'center'}});
        const box = c.getBoundingClientRect(), lane = {TIME}.lanes.find(l => l.kind === 'stream');
        const longest = lane.lengths.indexOf(Math.max(...lane.lengths));
        const at = (lane.begins[longest] + lane.lengths[longest] / 2) / {TIME}.full.to;
        return [box.left + at * box.width, box.top + lane.y + lane.h / 2]; }})()"""
    )
    browser.mouse("mouseMoved", x, y)
    browser.settle()
    assert browser.evaluate("document.querySelector('.tip').hidden") is False
    assert "from" in browser.evaluate("document.querySelector('.tip').textContent")


def test_devices_are_shown_one_at_a_time(browser: Browser, tmp_path: Path) -> None:
    write_profile_page(analyse([DATA / "nsys_2gpu_excerpt.sqlite.gz"]), tmp_path / "two.html")
    browser.open(tmp_path / "two.html", width=1200)
    shown = "[...document.querySelectorAll('.rank')].map(e => !e.hidden)"
    assert browser.evaluate(shown) == [True, False]
    browser.evaluate("document.querySelectorAll('[data-rank]')[1].click()")
    browser.settle()
    assert browser.evaluate(shown) == [False, True]
    assert browser.evaluate("document.querySelectorAll('.large')[1].width") > 100


def test_names_of_a_hostile_trace_do_not_execute(browser: Browser, tmp_path: Path) -> None:
    text = (
        msgspec.json.encode(analyse([DATA / "mi300x_vllm_decode_cudagraph.json.gz"]))
        .decode()
        .replace('"rank 0"', msgspec.json.encode(HOSTILE).decode())
        .replace("Cijk", HOSTILE)
    )
    from pinchpoint.profiles.model import Analysis

    write_profile_page(msgspec.json.decode(text, type=Analysis), tmp_path / "hostile.html")
    browser.open(tmp_path / "hostile.html", width=1200)
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("[...document.querySelectorAll('.flame button')].some(b => b.textContent.includes('<img'))")
    browser.evaluate(f"{FLAME}.rows.forEach(row => {{ row.box.focus(); row.box.click(); }})")
