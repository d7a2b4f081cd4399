"""A page of profiles that opens offline: where the time went as a flame-like picture, as a timeline, and in figures.

Bounded in size whatever the traces hold: so many devices in full, so many intervals and names of so many characters.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from pinchpoint import __version__
from pinchpoint.profiles.model import IDLE_MEANING, Analysis, Interval, Lane, OverviewRow, RankAnalysis
from pinchpoint.report.literal import visible
from pinchpoint.report.page import asset, csp_hash, embedded_json, template
from pinchpoint.report.profile_text import rank_facts
from pinchpoint.report.profile_words import (
    FAMILIES,
    FAMILY_TITLES,
    IDLE_TITLES,
    advice_of,
    family_of,
    format_title,
    headline,
    idle_words,
    longest_idle,
    most_telling,
    scaled,
    share,
    short_name,
    split_of,
    step_kind_title,
    step_words,
    title_of,
    tokens_of,
)
from pinchpoint.report.words import sentence
from pinchpoint.rundir import write_atomically
from pinchpoint.units import MISSING, counted, format_count, format_duration

RANKS_MAX = 8
"""Devices with pictures and tables of their own; a table holds a line for each of the others."""
INTERVALS_MAX = 24_000
"""On all timelines together, some 40 bytes each."""
NAME_CHARS = 300
"""Of a kernel, where it is told in full."""
STEPS_SHOWN = 60
KERNELS_SHOWN = 50
NS_PER_S = 1e9


def write_profile_page(analysis: Analysis, path: Path) -> None:
    """Writes the page to `path`, replacing what is there. Raises OSError."""
    write_atomically(path, profile_page(analysis).encode("utf-8"))


def profile_page(analysis: Analysis) -> str:
    script = asset("profile.js")
    ranks = _in_full(analysis)
    limit = INTERVALS_MAX // max(1, sum(len(rank.timeline) for rank in ranks))
    return _template().render(
        analysis=analysis,
        ranks=ranks,
        left_out=len(analysis.ranks) - len(ranks),
        first=most_telling(analysis.ranks),
        headline=sentence(headline(analysis)),
        notes=list(dict.fromkeys(note for rank in analysis.ranks for note in rank.notes)),
        devices=list(dict.fromkeys(one.device.name for one in ranks if one.device is not None and one.device.name)),
        data=embedded_json({"ranks": [_drawn(rank, limit) for rank in ranks], "titles": _titles(ranks)}),
        script=Markup(script),
        script_hash=Markup(csp_hash(script)),
        style=Markup(asset("report.css") + asset("profile.css")),
        version=__version__,
    )


@cache
def _template() -> Template:
    filters = {
        "duration": format_duration,
        "share": share,
        "count": format_count,
        "sentence": sentence,
        "title_of": title_of,
        "family_of": family_of,
        "short": lambda name: visible(short_name(name), NAME_CHARS),
        "name": lambda name: visible(name, NAME_CHARS),
        "scaled": scaled,
        "kind": step_kind_title,
        "tokens": tokens_of,
        "format_title": format_title,
        "counted": counted,
    }
    names = {
        "MISSING": MISSING,
        "STEPS_SHOWN": STEPS_SHOWN,
        "KERNELS_SHOWN": KERNELS_SHOWN,
        "FAMILY_TITLES": FAMILY_TITLES,
        "IDLE_TITLES": IDLE_TITLES,
        "meanings": IDLE_MEANING,
        "advice_of": advice_of,
        "facts_of": rank_facts,
        "idle_words": idle_words,
        "longest_idle": longest_idle,
        "split_of": split_of,
        "step_words": step_words,
        "families_of": _families_of,
        "family_of": family_of,
    }
    return template("profile.html.j2", filters, names)


def _families_of(rank: RankAnalysis) -> list[str]:
    """Colours that the device's pictures use, in their usual order."""
    present = {family_of(one.category) for one in rank.categories}
    return [family for family in FAMILIES if family in present]


def _in_full(analysis: Analysis) -> list[RankAnalysis]:
    """The devices with pictures: in the order of the files, the slowest among them."""
    ranks = list(analysis.ranks)
    slowest = analysis.across_ranks.slowest if analysis.across_ranks is not None else None
    kept = ranks[:RANKS_MAX]
    for left_out in ranks[RANKS_MAX:]:
        if left_out.label == slowest:
            kept[-1] = left_out
    return kept


def _titles(ranks: list[RankAnalysis]) -> dict[str, str]:
    named = {row.category for rank in ranks for row in rank.overview if row.category is not None}
    named |= {each.category for rank in ranks for lane in rank.timeline for each in lane.intervals}
    return {category: title_of(category) for category in sorted(named)}


def _drawn(rank: RankAnalysis, limit: int) -> dict[str, Any]:
    """What the script draws. Lanes are columns of whole nanoseconds, begins as differences."""
    names: dict[str, int] = {}
    lanes = [_drawn_lane(lane, limit, names) for lane in rank.timeline]
    return {
        "label": visible(rank.label),
        "overview": [
            [
                row.level,
                visible(_box_name(row), NAME_CHARS),
                "idle" if row.category == "idle" else family_of(row.category) if row.category else "",
                -1 if row.parent is None else row.parent,
                round(row.duration_s * NS_PER_S),
                row.count,
            ]
            for row in rank.overview
        ],
        "lanes": lanes,
        "names": list(names),
    }


def _box_name(row: OverviewRow) -> str:
    if row.level == "kernel":
        return short_name(row.name)
    return title_of(row.name) if row.level == "category" else row.name


def _drawn_lane(lane: Lane, limit: int, names: dict[str, int]) -> dict[str, Any]:
    intervals = lane.intervals if len(lane.intervals) <= limit else _thinned(lane.intervals, limit)
    starts = [round(each.start_s * NS_PER_S) for each in intervals]
    return {
        "name": visible(lane.name),
        "kind": lane.kind,
        "thinned": lane.thinned or len(intervals) < len(lane.intervals),
        "starts": [start - before for start, before in zip(starts, [0, *starts], strict=False)],
        "lengths": [round((each.end_s - each.start_s) * NS_PER_S) for each in intervals],
        "busy": [round(each.busy_s * NS_PER_S) for each in intervals],
        "events": [each.events for each in intervals],
        "categories": [each.category for each in intervals]
        if lane.kind != "stream"
        else [family_of(each.category) for each in intervals],
        "names": [names.setdefault(visible(short_name(each.name), NAME_CHARS), len(names)) for each in intervals],
    }


def _thinned(intervals: tuple[Interval, ...], limit: int) -> list[Interval]:
    """Neighbours together, under the name and category of the longest."""
    size = -(-len(intervals) // max(1, limit))
    groups = [intervals[at : at + size] for at in range(0, len(intervals), size)]
    return [
        Interval(
            start_s=group[0].start_s,
            end_s=max(each.end_s for each in group),
            busy_s=sum(each.busy_s for each in group),
            category=(longest := max(group, key=lambda each: each.busy_s)).category,
            name=longest.name,
            events=sum(each.events for each in group),
        )
        for group in groups
    ]
