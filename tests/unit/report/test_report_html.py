"""The HTML file: complete without network or JavaScript, harmless whatever the service said."""

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from tests.support.runs import build_run, example_verdict, open_view

from pinchpoint.model import Verdict
from pinchpoint.report.html import command_line, embedded_json, html, write_html
from pinchpoint.series import RunView

SIZE_MAX_BYTES = 2_000_000
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>\u2028{{7*7}}${7*7}"
LOADING_ATTRIBUTES = {"src", "srcset", "href", "xlink:href", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """Elements and attributes of a page, its visible text, and the content of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag in ("script", "style"):
            self._inside.append(tag)
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)
        elif self._inside[-1] == "script":
            self.scripts[-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def page(report_view: RunView, report_verdict: Verdict) -> str:
    return html(report_view, report_verdict)


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    for tag, name, value in Page(page).attributes:
        if name in LOADING_ATTRIBUTES:
            assert value.startswith("#") or value == "data:,", f"<{tag} {name}={value}>"
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "fetch(" not in page and "XMLHttpRequest" not in page and "WebSocket" not in page


def test_policy_allows_no_network_and_only_the_two_scripts(page: str) -> None:
    policy = next(v for t, n, v in Page(page).attributes if t == "meta" and "default-src" in v)
    assert policy.startswith("default-src 'none'")
    library, script = Page(page).scripts[1:]
    for code in (library, script):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_usual_report_is_small(page: str) -> None:
    assert len(page.encode()) < SIZE_MAX_BYTES


def test_every_fact_is_readable_without_javascript(page: str, report_verdict: Verdict) -> None:
    text = Page(page).text.lower()
    finding = report_verdict.findings[0]
    said = [item.statement for item in (*finding.evidence, *finding.against)]
    said += [remedy.action for remedy in finding.remedies] + ["--max-num-seqs 16", finding.confirm]
    said += [rival.against[0].statement for rival in report_verdict.rejected]
    said += [item.why for item in report_verdict.not_evaluable]
    said += [reason.statement for reason in report_verdict.validity_reasons]
    said += [stage.name for stage in report_verdict.stages] + [slo.text for slo in report_verdict.slos]
    said += ["5.5–6", "94 % sure", *report_verdict.target.unknown]
    assert [sentence for sentence in said if sentence.lower() not in text] == []


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    steps = (("search", 4.0, 15.0), ("search", 8.0, 10.0))
    view = open_view(
        build_run(tmp_path / "run", steps=steps, model_name=ATTACK, error_text=ATTACK + "\x1b[2J", reject_ratio=0.2)
    )
    verdict = example_verdict(view, notes=(ATTACK,), headline=ATTACK)
    hostile_stage = msgspec.structs.replace(verdict.stages[1], name=ATTACK, reason=ATTACK)
    verdict = msgspec.structs.replace(verdict, stages=(hostile_stage, *verdict.stages[2:]))
    text = html(view, verdict)
    page = Page(text)
    assert len(page.scripts) == 3
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert ATTACK.replace("\u2028", " ") in page.text
    assert "\u2028" not in text and "\x1b" not in text
    assert json.loads(page.scripts[0])["stages"]


@pytest.mark.parametrize("text", ["</script>", "<!--<script>", "\u2028\u2029", "]]>", "&lt;"])
def test_embedded_json_cannot_end_its_block(text: str) -> None:
    embedded = str(embedded_json({"key": text}))
    assert not set(embedded) & set("<>&\u2028\u2029")
    assert json.loads(embedded) == {"key": text}


def test_nan_never_reaches_the_page(page: str) -> None:
    with pytest.raises(ValueError):
        embedded_json({"x": float("nan")})
    data = Page(page).scripts[0]
    assert "NaN" not in data and "Infinity" not in data


def test_aborted_and_invalid_are_said_first(tmp_path: Path) -> None:
    view = open_view(build_run(tmp_path / "run", steps=(("search", 2.0, 10.0),), status="aborted"))
    text = Page(html(view, example_verdict(view, validity="INVALID"))).text
    assert text.index("The measurement is invalid") < text.index("Capacity")
    assert "cut short. Stopped by a guard: errors above 50 %" in text


def test_a_run_without_steps_findings_or_telemetry_still_gives_a_page(tmp_path: Path) -> None:
    view = open_view(build_run(tmp_path / "run", steps=(), telemetry=False))
    verdict = example_verdict(
        view,
        capacity=None,
        findings=(),
        rejected=(),
        not_evaluable=(),
        validity_reasons=(),
        headline="nothing measured",
    )
    path = tmp_path / "report.html"
    write_html(view, verdict, path)
    text = Page(path.read_text(encoding="utf-8")).text
    assert "Nothing measured" in text
    assert "No metrics page of the engine was found" in text and "No accelerator was read" in text


def test_command_line_survives_a_shell(report_view: RunView, report_verdict: Verdict) -> None:
    words = shlex.split(command_line(report_view, report_verdict))
    assert words[:3] == ["pinchpoint", "run", "http://127.0.0.1:8000"]
    assert words[words.index("--slo") + 1] == "ttft p90 < 800ms"
    target = msgspec.structs.replace(report_verdict.target, model="a; rm -rf $HOME")
    hostile = command_line(report_view, msgspec.structs.replace(report_verdict, target=target))
    assert "a; rm -rf $HOME" in shlex.split(hostile)
