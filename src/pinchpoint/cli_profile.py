"""The verb that reads profiles and says where the time of a step goes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pinchpoint.cli_output import OUTPUT, Json, complain, print_json
from pinchpoint.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from pinchpoint.profiles.model import Analysis

TOP_DEFAULT = 15
PAGE_SUFFIX = ".profile.html"
ENDINGS = (".gz", ".json", ".sqlite", ".csv", ".db", ".trace", ".pt")

profile_app = App(name="profile", help="Read profiles of GPU work and say where the time of a step goes.")


@profile_app.default
def profile(
    *files: Annotated[
        Path,
        Parameter(
            help="Traces of PyTorch's profiler, Nsight Systems (SQLite, CSV), DLProf or rocprof; several: ranks of "
            "one run."
        ),
    ],
    out: Annotated[
        Path | None,
        Parameter(
            name=("--out", "-o"), group=OUTPUT, help="Page to write (HTML); default: beside the first file, else here."
        ),
    ] = None,
    top: Annotated[int, Parameter(group=OUTPUT, help="Kernels shown per device.")] = TOP_DEFAULT,
    as_json: Json = False,
) -> int:
    """Say where the GPU's time went: busy and idle and why, by category, kernel, layer and step; and write a page."""
    if not files:
        raise UsageError("name at least one profile, such as a .pt.trace.json.gz of PyTorch's profiler")
    if top < 1:
        raise UsageError(f"--top {top} shows nothing; give at least 1")
    from pinchpoint.profiles import analyse

    analysis = analyse(files)
    page = _write(analysis, out, files[0])
    if as_json:
        print_json(profile_json(analysis))
        return EXIT_OK
    from rich.console import Console

    from pinchpoint.report.literal import visible
    from pinchpoint.report.profile_text import profile_screen

    console = Console(highlight=False)
    console.print(profile_screen(analysis, top))
    console.print(f"\npage  {visible(page)}", markup=False, soft_wrap=True)
    return EXIT_OK


def profile_json(analysis: "Analysis") -> dict[str, Any]:
    import msgspec

    return {"schema": "pinchpoint.profile/1", **msgspec.to_builtins(analysis)}


def page_name(file: Path) -> str:
    """The name without what tells the format, and the page's ending."""
    name = file.name
    while name.endswith(ENDINGS) and (shorter := name.rpartition(".")[0]):
        name = shorter
    return name + PAGE_SUFFIX


def _write(analysis: "Analysis", out: Path | None, first: Path) -> Path:
    from pinchpoint.report.profile_html import write_profile_page

    target = out
    if target is None:
        beside = first.absolute().parent
        target = (beside if os.access(beside, os.W_OK | os.X_OK) else Path.cwd()) / page_name(first)
    elif any(target.exists() and file.exists() and target.samefile(file) for file in map(Path, _paths(analysis))):
        raise UsageError(f"--out {target} is one of the profiles; give another file for the page")
    try:
        write_profile_page(analysis, target)
    except OSError as error:
        if out is not None:
            raise UsageError(f"cannot write {target}: {error.strerror}; give a writable file with --out") from None
        complain(f"cannot write {target}: {error.strerror}; give a writable file with --out")
    return target


def _paths(analysis: "Analysis") -> list[str]:
    return [file.path for file in analysis.files]
