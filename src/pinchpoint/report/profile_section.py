"""What a report says of the profile that was taken during its run: read from the run directory, where there is one."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from pinchpoint.profiles.model import Analysis, RankAnalysis
from pinchpoint.report.profile_words import headline, most_telling
from pinchpoint.report.words import sentence

DIRECTORY = "profile"
ANALYSIS_FILE = "analysis.json"
PAGE_FILE = "profile.html"
ANALYSIS_BYTES_MAX = 64 << 20
"""A hundred times what an analysis takes; a larger file is none of ours."""


class ProfileSection(NamedTuple):
    """link: of the page, relative to the run directory; None when it is not there."""

    analysis: Analysis
    headline: str
    rank: RankAnalysis | None
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
    """For the page of a run."""
    analysis = profile_of(run_path)
    if analysis is None or not analysis.ranks:
        return None
    page = run_path / DIRECTORY / PAGE_FILE
    link = f"{DIRECTORY}/{PAGE_FILE}" if page.exists() else None
    return ProfileSection(analysis, sentence(headline(analysis)), most_telling(analysis.ranks), link)
