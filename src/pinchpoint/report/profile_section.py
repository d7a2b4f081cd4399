"""What a report says of the profile that was taken during its run: read from the run directory, where there is one."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from pinchpoint.profiles.model import Analysis
from pinchpoint.report.profile_text import rank_facts
from pinchpoint.report.profile_words import advice_of, headline, most_telling, split_of, title_of
from pinchpoint.report.words import sentence

DIRECTORY = "profile"
ANALYSIS_FILE = "analysis.json"
PAGE_FILE = "profile.html"
ANALYSIS_BYTES_MAX = 64 << 20
"""A hundred times what an analysis takes; a larger file is none of ours."""
CATEGORIES_SHOWN = 6


class ProfileSection(NamedTuple):
    """split, categories: (title, share, seconds). facts: (what, words). link: of the page; None: there is none."""

    headline: str
    advice: str | None
    split: list[tuple[str, float, float]]
    categories: list[tuple[str, float, float]]
    facts: list[tuple[str, str]]
    link: str | None


def profile_of(run_path: Path) -> Analysis | None:
    """The stored analysis; None when the run was not profiled, or what lies there is no analysis of this version."""
    path = run_path / DIRECTORY / ANALYSIS_FILE
    try:
        if path.stat().st_size > ANALYSIS_BYTES_MAX:
            return None
        return msgspec.json.decode(path.read_bytes(), type=Analysis)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def profile_section(run_path: Path) -> ProfileSection | None:
    """For the page of a run. None when there is nothing to say."""
    analysis = profile_of(run_path)
    rank = most_telling(analysis.ranks) if analysis is not None else None
    if analysis is None or rank is None:
        return None
    page = run_path / DIRECTORY / PAGE_FILE
    return ProfileSection(
        headline=sentence(headline(analysis)),
        advice=advice_of(rank),
        split=[(title, part, seconds) for _, title, seconds, part in split_of(rank)],
        categories=[
            (title_of(one.category), one.share, one.busy_s if one.busy_s is not None else one.total_s)
            for one in rank.categories[:CATEGORIES_SHOWN]
        ],
        facts=rank_facts(rank),
        link=f"{DIRECTORY}/{PAGE_FILE}" if page.exists() else None,
    )
