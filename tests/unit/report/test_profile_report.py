"""Profiles on screen and page: what is said, that names of strangers stay text, and that pages stay small."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from pinchpoint.profiles import analyse
from pinchpoint.profiles.kernels import catalogue
from pinchpoint.profiles.model import (
    Analysis,
    CategoryTime,
    GpuTime,
    IdleClass,
    Interval,
    KernelTime,
    Lane,
    OverviewRow,
    Problem,
    ProfileFile,
    RankAnalysis,
)
from pinchpoint.report.profile_html import INTERVALS_MAX, RANKS_MAX, profile_page
from pinchpoint.report.profile_section import ANALYSIS_FILE, DIRECTORY, PAGE_FILE, profile_of, profile_section
from pinchpoint.report.profile_text import profile_block, profile_screen
from pinchpoint.report.profile_words import FAMILIES, headline, scaled, short_name, split_of
from pinchpoint.report.text import to_text

DATA = Path(__file__).parents[2] / "data" / "profiles"
HOSTILE = (
    "[bold]<img src=x onerror=alert(1)></script><script>alert(2)</script>\x1b]0;title\x07\x1b[31m{{ 7*7 }}\u202eend"
)
CAPTURES = sorted(path for path in DATA.iterdir() if path.name.endswith((".json.gz", ".sqlite.gz", ".csv", ".csv.gz")))
CAPTURES = [path for path in CAPTURES if "reference" not in path.name]
MIB_BYTES = 1 << 20


def gpu(**changed: float) -> GpuTime:
    plain = {
        "span_s": 1.0, "busy_s": 0.9, "idle_s": 0.1, "compute_s": 0.9, "exposed_communication_s": 0.0,
        "exposed_copy_s": 0.0, "communication_s": 0.0, "copy_s": 0.0, "busy_share": 0.9,
    }  # fmt: skip
    return GpuTime(**{**plain, **changed}, kernels=10, copies=0, streams=1)


def rank(name: str = "GPU 0", kernel: str = "sm90_gemm", intervals: int = 10, **changed: object) -> RankAnalysis:
    lane = Lane(
        name="stream 7", kind="stream", thinned=False,
        intervals=tuple(
            Interval(start_s=i * 1e-6, end_s=i * 1e-6 + 5e-7, busy_s=5e-7, category="gemm", name=kernel, events=1)
            for i in range(intervals)
        ),
    )  # fmt: skip
    values: dict = {
        "label": name, "file": 0, "rank": 0, "world_size": None, "device": None, "origin_unix_ns": None,
        "span_s": 1.0, "gpu": gpu(), "kernel_names": 1, "timeline": (lane,), "notes": (kernel,),
        "categories": (CategoryTime(category="gemm", title="", busy_s=0.9, total_s=0.9, share=1.0, kernels=10),),
        "kernels": (KernelTime(name=kernel, category="gemm", calls=10, total_s=0.9, share=1.0, mean_s=0.09),),
        "overview": (
            OverviewRow(level="rank", name=name, category=None, parent=None, duration_s=0.9, count=10),
            OverviewRow(level="category", name="gemm", category="gemm", parent=0, duration_s=0.9, count=10),
            OverviewRow(level="kernel", name=kernel, category="gemm", parent=1, duration_s=0.9, count=10),
        ),
    }  # fmt: skip
    return RankAnalysis(**{**values, **changed})


def analysis(*ranks: RankAnalysis, problems: tuple[Problem, ...] = ()) -> Analysis:
    file = ProfileFile(path="trace.json", format="kineto", bytes_read=10, events_read=10, complete=not problems)
    return Analysis(files=(file,), format="kineto", ranks=ranks, across_ranks=None, problems=problems)


def embedded(page: str) -> dict:
    (block,) = re.findall(r'id="profile-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block)


def test_every_category_of_kernels_has_one_colour() -> None:
    of_families = [category for categories in FAMILIES.values() for category in categories]
    assert sorted(of_families) == sorted(catalogue().categories)


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_every_recorded_profile_has_a_screen_and_a_small_page(path: Path) -> None:
    found = analyse([path])
    text = to_text(profile_screen(found), 120)
    assert headline(found) in text.replace("\n", " ")
    page = profile_page(found)
    assert len(page) < 3 * MIB_BYTES
    assert headline(found).split(";")[0][:40] in page
    assert "could not be read, or not be told" in text or not (found.problems or any(r.notes for r in found.ranks))


def test_the_screen_names_idle_time_by_its_cause() -> None:
    idle = IdleClass(kind="launch_bound", gaps=20, total_s=0.5, largest_s=0.1, share=0.5)
    found = analysis(rank(gpu=gpu(idle_s=0.5, busy_s=0.5, compute_s=0.5, busy_share=0.5), idle=(idle,)))
    assert (
        headline(found) == "The GPU was idle 50.0 % of the time, most of it waiting for the next launch within a step"
    )
    text = to_text(profile_screen(found), 120)
    assert re.search(r"launch-bound +█+ +50\.0 % +500 ms in 20 gaps, the largest 100 ms", text)
    assert "use graphs" in to_text(profile_block(found), 120)


def test_the_parts_of_the_span_add_up() -> None:
    idle = IdleClass(kind="queued", gaps=1, total_s=0.25, largest_s=0.25, share=0.25)
    parts = gpu(compute_s=0.5, exposed_communication_s=0.25, idle_s=0.25, communication_s=0.3, busy_share=0.75)
    assert sum(share for *_, share in split_of(rank(gpu=parts, idle=(idle,)))) == pytest.approx(1.0)
    waits = analysis(rank(gpu=parts))
    assert headline(waits) == "The GPU did nothing but communicate for 25.0 % of the time"


def test_a_profile_without_a_gpu_says_so_and_what_the_cpu_did() -> None:
    found = analyse([DATA / "vllm_cpu_tiny_llama.json.gz"])
    assert headline(found).startswith("No work on a GPU; on the CPU _C::onednn_mm took most")
    assert "operators on the CPU" in to_text(profile_screen(found), 120)
    assert "On the CPU" in profile_page(found)


def test_a_file_in_which_nothing_was_found_has_a_screen_and_a_page() -> None:
    found = analysis(problems=(Problem(file="trace.json", what="it ends early", byte_offset=7, events_lost=3),))
    assert "it ends early (at byte 7)" in to_text(profile_screen(found), 120)
    assert "A part could not be read" in profile_page(found)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_hostile_names_stay_text_on_the_screen(width: int) -> None:
    found = analysis(rank(HOSTILE, HOSTILE), problems=(Problem(file=HOSTILE, what=HOSTILE),))
    text = to_text(profile_screen(found), width)
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
    assert "[bold]" in text


def test_hostile_names_stay_text_on_the_page() -> None:
    found = analysis(rank(HOSTILE, HOSTILE), rank("other", HOSTILE), problems=(Problem(file=HOSTILE, what=HOSTILE),))
    page = profile_page(found)
    assert "<img" not in page
    assert page.count("<script") == 2
    assert not set(page) & {"\x1b", "\x07", "\u202e"}
    assert "onerror=alert(1)" in embedded(page)["ranks"][0]["names"][0]


def test_pages_stay_small_however_many_devices_lanes_and_long_names_there_are() -> None:
    lanes = rank(kernel="k" * 3000, intervals=1000).timeline * 24
    ranks = [rank(f"rank {i}", "n" * 3000, timeline=lanes) for i in range(64)]
    page = profile_page(analysis(*ranks))
    assert len(page) < 3 * MIB_BYTES
    drawn = embedded(page)["ranks"]
    assert len(drawn) == RANKS_MAX
    assert sum(len(lane["starts"]) for one in drawn for lane in one["lanes"]) <= INTERVALS_MAX
    assert all(lane["thinned"] for one in drawn for lane in one["lanes"])


def test_thinning_keeps_the_work_and_the_span() -> None:
    lane = rank(intervals=30_000).timeline[0]
    (drawn,) = embedded(profile_page(analysis(rank(timeline=(lane,)))))["ranks"][0]["lanes"]
    assert len(drawn["starts"]) < len(lane.intervals)
    assert sum(drawn["events"]) == 30_000
    assert sum(drawn["busy"]) == pytest.approx(30_000 * 500, rel=0.01)
    assert sum(drawn["starts"]) + drawn["lengths"][-1] == pytest.approx(30_000_000, rel=0.001)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<int>", "CatArrayBatchedCopy<int>"),
        ("void at::native::elementwise_kernel<(int)128, (int)4>", "elementwise_kernel<128, 4>"),
        ("nvjet_hsh_128x256", "nvjet_hsh_128x256"),
        ("void ", "void "),
    ],
)
def test_namespaces_that_all_kernels_share_are_left_out(name: str, short: str) -> None:
    assert short_name(name) == short


def test_amounts_have_a_prefix() -> None:
    assert (scaled(6.11e14, "FLOP/s"), scaled(12.0, "B/s"), scaled(None, "B/s")) == ("611 TFLOP/s", "12 B/s", "–")


def test_a_run_without_a_profile_or_with_a_damaged_one_has_no_section(tmp_path: Path) -> None:
    assert profile_section(tmp_path) is None
    (tmp_path / DIRECTORY).mkdir()
    (tmp_path / DIRECTORY / ANALYSIS_FILE).write_bytes(b'{"files": 3')
    assert profile_of(tmp_path) is None and profile_section(tmp_path) is None


def test_a_run_with_a_profile_says_where_the_time_went_and_links_the_page(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).mkdir()
    found = analysis(rank())
    (tmp_path / DIRECTORY / ANALYSIS_FILE).write_bytes(msgspec.json.encode(found))
    section = profile_section(tmp_path)
    assert section is not None and section.link is None
    assert section.headline == "The GPU was busy 90.0 % of the time; most of that is matrix products, 100.0 %"
    assert section.categories == [("matrix products", 1.0, 0.9)]
    (tmp_path / DIRECTORY / PAGE_FILE).write_text("page")
    assert profile_section(tmp_path) == section._replace(link="profile/profile.html")
