"""The documentation says what the code says: generated pages are current, and nothing that exists is left out."""

import importlib.util
import re
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from pinchpoint import delivered, errors, measure, model, plan
from pinchpoint.capacity import CONFIDENCE
from pinchpoint.catalog import load_catalog
from pinchpoint.cli import app
from pinchpoint.diagnose.rule import load_rules
from pinchpoint.lab.faults import FAULTS
from pinchpoint.report import load_answer
from pinchpoint.report.text import LABELS
from pinchpoint.stats import MIN_COUNT_FOR_QUANTILE, SequentialBinomial
from pinchpoint.workload.arrivals import Arrivals
from pinchpoint.workload.library import presets
from pinchpoint.workload.schedule import check_stages

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
REPOSITORY_PATH = re.compile(r"(?<![\w/.-])((?:src|tests|docs|examples|tools)/[\w./-]*\w)")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "tools" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_reference = load_tool()


def text_of(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_generated_pages_are_current() -> None:
    assert make_reference.stale_pages() == [], "run: python tools/make_reference.py"


def test_every_verb_has_its_help_in_the_reference() -> None:
    page = text_of("cli.md")
    found = list(make_reference.verbs(app))
    assert ("run",) in found and ("lab", "serve") in found
    for path in found:
        assert f"## pinchpoint {' '.join(path)}\n" in page


STAGE_KINDS = typing.get_args(plan.StageSpec)


def section(page: str, heading: str) -> str:
    """From a heading to the next one of any level."""
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, f"there is no section {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("struct", "heading"),
    [
        (plan.Plan, "## Keys"),
        (plan.WorkloadSpec, "## workload"),
        (plan.Transport, "## transport"),
        (plan.Backend, "## backends"),
        *((kind, f"### {kind.__struct_config__.tag}") for kind in STAGE_KINDS),
    ],
)
def test_every_plan_key_is_in_its_section_of_the_reference(struct: type[msgspec.Struct], heading: str) -> None:
    text = section(text_of("plan.md"), heading)
    for key in struct.__struct_fields__:
        assert f"| `{key}` |" in text


def test_every_spelling_with_a_unit_stands_beside_its_key() -> None:
    page = text_of("plan.md")
    for short, key in {**plan._DURATIONS, **plan._RATES, **plan._STAGE_DURATIONS, **plan._STAGE_RATES}.items():
        assert f"| `{key}` | `{short}` |" in page


def test_every_law_of_arrivals_durations_and_counts_is_explained() -> None:
    laws = section(text_of("plan.md"), "## Laws")
    source = (ROOT / "src" / "pinchpoint" / "workload" / "durations.py").read_text()
    kinds = {*typing.get_args(typing.get_type_hints(Arrivals)["kind"]), *re.findall(r'case \(?"([a-z]+)"', source)}
    assert {"poisson", "lognormal", "geometric"} <= kinds
    for kind in kinds:
        assert f"`{kind}" in laws


def test_every_series_is_in_the_reference_with_its_unit() -> None:
    page = text_of("series.md")
    for entry in load_catalog().entries.values():
        stem = re.sub(r"_(sum|count|bucket)$", "", entry.name)
        if load_catalog().entry(stem) is None or stem == entry.name:
            assert f"| `{entry.name}` | {entry.unit} |" in page


def test_every_rule_has_a_page_and_is_in_the_index() -> None:
    index = (REFERENCE / "rules" / "index.md").read_text()
    for loaded in load_rules():
        page = (REFERENCE / "rules" / f"{loaded.rule.code.lower()}.md").read_text()
        assert page.splitlines()[2] == f"# {loaded.rule.code} {loaded.rule.name}"
        assert f"[{loaded.rule.code}]({loaded.rule.code.lower()}.md)" in index
        for number in loaded.rule.params:
            assert f"| {number} |" in page


def test_no_word_of_a_rules_docstring_is_lost_on_its_page() -> None:
    for loaded in load_rules():
        page = (REFERENCE / "rules" / f"{loaded.rule.code.lower()}.md").read_text()
        assert set(re.findall(r"\w+", loaded.doc)) <= set(re.findall(r"\w+", page))


def test_every_fault_and_preset_is_in_the_reference() -> None:
    for name in FAULTS:
        assert f"### {name}\n" in text_of("faults.md")
    for name in presets():
        assert f"| `{name}` |" in text_of("workloads.md")


def test_every_column_is_in_the_reference() -> None:
    page = text_of("run-directory.md")
    for columns in (model.SCHEDULE_COLUMNS, model.RECORD_COLUMNS, model.SAMPLE_COLUMNS):
        for name, kind in columns.items():
            assert f"| `{name}` | `{kind.rstrip('?')}` |" in page


def test_every_status_of_a_request_and_every_event_is_explained() -> None:
    kinds = set(re.findall(r'on_event\(\s*"([a-z-]+)"', SOURCE))
    assert {"stage", "slos", "host-limits"} <= kinds
    waits = model.Phase.__args__
    for page, names in (("statuses.md", (*model.STATUSES, *waits)), ("run-directory.md", kinds)):
        for name in names:
            assert f"| `{name}` |" in text_of(page)


def test_every_json_schema_name_is_in_the_reference() -> None:
    page = text_of("json.md")
    names = set(re.findall(r'"(pinchpoint\.[a-z-]+/[0-9]+)"', SOURCE))
    assert "pinchpoint.verdict/1" in names
    for name in names:
        assert f"## {name}\n" in page


def structs_in(kind: typing.Any) -> Iterator[type[msgspec.Struct]]:
    """The structs that a type is made of, itself included."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        inner = typing.get_type_hints(kind).values()
    else:
        inner = typing.get_args(kind)
    for one in inner:
        yield from structs_in(one)


def test_every_field_and_metric_of_a_plain_load_is_in_the_reference() -> None:
    page = text_of("json.md").partition("\n## pinchpoint.load/1\n")[2].partition("\n## ")[0]
    found = {*structs_in(measure.LoadResult), *structs_in(delivered.Delivery)} - {measure.LoadResult}
    assert {"Tally", "Metric", "PerSecond", "Lengths"} <= {struct.__name__ for struct in found}
    for struct in found:
        heading = "### Stage of a load" if struct is measure.StageLoad else f"### {struct.__name__}"
        text = section(page, heading)
        for name in struct.__struct_fields__:
            assert f"| `{name}` |" in text or name == "tally"
    for name in make_reference.literal_keys(load_answer, "load_json"):
        assert f"| `{name}` |" in page
    for name in make_reference.literal_keys(measure, "_metrics"):
        assert f"| `{name}` |" in section(text_of("metrics.md"), "## Plain loads")


def test_every_exit_code_is_in_the_reference() -> None:
    codes = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    for code in codes:
        assert f"| {code} |" in text_of("exit-codes.md")


def test_every_check_of_the_measurement_is_explained() -> None:
    page = (ROOT / "docs" / "explanation" / "diagnosis.md").read_text()
    source = "".join(path.read_text() for path in sorted((ROOT / "src/pinchpoint/diagnose").glob("check*.py")))
    names = set(re.findall(r'ValidityReason\(\s*"([a-z-]+)"', source)) - {"measured"}
    assert {"send-lag", "prefix-cache", "loop-stall"} <= names
    for name in names:
        assert f"| `{name}` |" in page


def test_price_of_a_percentile_is_what_the_test_asks_for() -> None:
    page = (ROOT / "docs" / "explanation" / "capacity.md").read_text().replace("\u202f", " ")
    for allowed_ratio in (0.05, 0.01, 0.001):
        needed = [SequentialBinomial.requests_to_pass(allowed_ratio, (1 - CONFIDENCE) / slos) for slos in (1, 2, 3, 4)]
        assert " | ".join(f"{n:,}".replace(",", " ") for n in needed) in page


def test_requests_that_a_quantile_needs_are_those_of_the_code() -> None:
    page = text_of("metrics.md")
    for q, name in ((0.5, "p50"), (0.9, "p90"), (0.95, "p95"), (0.99, "p99"), (0.999, "p99.9")):
        assert f"| {name} | {MIN_COUNT_FOR_QUANTILE[q]} |" in page


# -- examples and commands ---------------------------------------------------------------------------------------------


def test_example_plan_is_a_plan_and_the_one_that_is_shown() -> None:
    path = ROOT / "examples" / "plan.toml"
    asked = plan.read_plan(path, {})
    assert [type(stage) for stage in asked.stages] == [plan.OpenStage, plan.ClosedStage]
    shown = re.search(r"```toml\n(.*?)```", text_of("plan.md"), re.DOTALL)
    assert shown is not None
    assert tomllib.loads(shown[1]) == tomllib.loads(path.read_text())


def test_the_example_of_stages_has_every_kind_and_can_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # traces are named from the top of the repository
    asked = plan.read_plan(Path("examples/stages.toml"), {})
    check_stages(asked)
    assert [type(stage) for stage in asked.stages] == list(STAGE_KINDS)
    table = (ROOT / "docs" / "how-to" / "fixed-stages.md").read_text()
    for kind in STAGE_KINDS:
        assert f"| `{kind.__struct_config__.tag}` |" in table


def commands(path: Path) -> Iterator[str]:
    """Every pinchpoint command of a page, continuation lines joined."""
    for block in FENCE.findall(path.read_text(encoding="utf-8")):
        if block.startswith(("```sh", "```console")):
            for line in block.replace("\\\n", " ").splitlines():
                stripped = line.removeprefix("$ ").strip()
                if stripped.startswith("pinchpoint "):
                    yield stripped


@pytest.mark.parametrize("path", [p for p in PAGES if list(commands(p))], ids=page_id)
def test_commands_that_are_shown_can_be_given(path: Path) -> None:
    for command in commands(path):
        words = make_reference.shlex.split(command)[1:]
        if words not in (["--version"], ["--help"]):
            app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every console command of the tutorial, run in order in one empty directory, with what it printed."""
    directory = tmp_path_factory.mktemp("tutorial")
    printed: dict[str, str] = {}
    for path in sorted((ROOT / "docs" / "tutorial").glob("*.md")):
        for command in make_reference.console_commands(path.read_text(encoding="utf-8")):
            done = make_reference.run_command(command, directory)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            printed[command] = done.stdout
    return printed


def lower_end_rps(screen: str) -> float:
    found = re.search(r"CAPACITY +(?:at least )?([0-9.]+)", screen)
    assert found is not None
    return float(found[1])


def test_tutorial_finds_what_it_says(tutorial: dict[str, str]) -> None:
    first = next(text for command, text in tutorial.items() if "slot-cap" in command and "synth" in command)
    for said in ("CAPACITY", "BREAKS FIRST", "SEQ001", "DO THIS", "--max-num-seqs", "HOW SURE", "STEPS", "errors < 1%"):
        assert said in first
    second = next(text for command, text in tutorial.items() if command.startswith("pinchpoint diagnose"))
    assert lower_end_rps(second) >= lower_end_rps(first), "a looser promise carries no less"
    healthy = next(text for command, text in tutorial.items() if "--fault none" in command)
    assert "PRE001" in healthy or "DEC001" in healthy


def test_tutorial_shows_the_same_finding_as_it_gets(tutorial: dict[str, str]) -> None:
    """Figures may differ in a digit between versions of libraries; sections and causes may not."""
    text = (ROOT / "docs" / "tutorial" / "first-run.md").read_text(encoding="utf-8")
    for block in FENCE.findall(text):
        for command in make_reference.console_commands(block):
            for word in re.findall(r"\b[A-Z]{2,4}00[0-9]\b|^[A-Z]{2}[A-Z ]+(?=  )", tutorial[command], re.MULTILINE):
                assert word in block, "run: python tools/make_reference.py"


def test_every_label_of_the_screen_is_explained() -> None:
    page = (ROOT / "docs" / "how-to" / "read-an-answer.md").read_text()
    for label in LABELS.values():
        assert f"| `{label}` |" in page


def test_code_that_is_shown_is_code() -> None:
    for path in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            compile(block, page_id(path), "exec")


def test_every_make_target_that_is_named_exists() -> None:
    rules = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    for path in PAGES:
        for named in re.findall(r"(?:^|`)make ([a-z-]+)(?:$|`)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert named in targets, f"{page_id(path)}: make {named}"


# -- links and paths ---------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_repository_path_that_is_named_exists(path: Path) -> None:
    for named in re.findall(
        r"(?<![\w/.-])((?:src|tests|docs|examples|tools)/[\w./-]*\w)", path.read_text(encoding="utf-8")
    ):
        assert (ROOT / named).exists(), f"{named} does not exist"


def test_every_page_is_reached_from_the_index() -> None:
    seen: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", page.read_text(encoding="utf-8")))
        waiting += [(page.parent / link).resolve() for link in links if not re.match(r"[a-z]+:", link)]
    assert {path for path in PAGES if path.is_relative_to(ROOT / "docs")} <= seen


def test_tests_that_guard_invariants_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "ARCHITECTURE.md").read_text()))
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    for name in named:
        assert f"def {name}(" in written


def test_layers_of_the_architecture_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    shown = (ROOT / "ARCHITECTURE.md").read_text()
    position = 0
    for layer in layers:
        line = "| " + layer.replace("pinchpoint.", "").replace(" | ", " \\| ") + " |"
        assert line in shown, f"{line} is missing"
        position, before = shown.index(line), position
        assert position > before
