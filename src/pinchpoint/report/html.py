"""The report as one file that opens offline: text and tables in HTML, charts drawn by the scripts inside it.

Nothing is loaded from anywhere, and the page forbids itself to: its content security policy allows no network and only
the scripts whose hashes it lists. Text from the service is escaped by the template and reaches scripts only inside a
JSON block in which no character can end a tag.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Template
from markupsafe import Markup, escape

from pinchpoint.cost import Cost, cost_of
from pinchpoint.model import ClassResult, Finding, StageResult, Verdict
from pinchpoint.report import cost_words, words
from pinchpoint.report.charts import chart_data
from pinchpoint.report.literal import visible
from pinchpoint.report.page import asset, csp_hash, embedded_json, template
from pinchpoint.report.profile_section import profile_section
from pinchpoint.report.ruler import rate_ruler
from pinchpoint.report.spans_text import spans_section
from pinchpoint.rundir import write_atomically
from pinchpoint.series import RunView
from pinchpoint.units import MISSING, format_count, format_duration, format_ratio

ERROR_TEXTS_SHOWN = 8
CARD_LABELS = {
    "fault": "Gives way first",
    "physical-limit": "At its physical limit",
    "healthy": "Nothing gave way",
    "load-generator": "Limited by the load generator",
    "unknown": "Cause not known",
}


def write_html(view: RunView, verdict: Verdict, path: Path, cost: Cost | None = None) -> None:
    """Writes the report to `path`, replacing what is there."""
    write_atomically(path, html(view, verdict, cost).encode("utf-8"))


def html(view: RunView, verdict: Verdict, cost: Cost | None = None) -> str:
    """cost: None = worked out with the price of the run's plan."""
    cost = cost or cost_of(view, verdict.slos, capacity=verdict.capacity)
    charts = chart_data(view, verdict)
    library, script = asset("uPlot.iife.min.js"), asset("report.js")
    return _template().render(
        view=view,
        verdict=verdict,
        manifest=view.manifest,
        target=verdict.target,
        top=words.top_finding(verdict),
        card_label=CARD_LABELS[verdict.findings[0].kind] if verdict.findings else "Cause not known",
        headline=words.sentence(verdict.headline),
        charts=charts,
        ruler=rate_ruler(verdict),
        chart_json=embedded_json(charts),
        library=Markup(library),
        script=Markup(script),
        style=Markup(asset("uPlot.min.css") + asset("report.css")),
        script_hashes=Markup(" ".join(csp_hash(text) for text in (library, script))),
        streams={stage.index: stage.concurrency for stage in view.stages if stage.rate_rps is None},
        stages=[stage for stage in verdict.stages if stage.kind in words.LOADED_KINDS or stage.kind == "warmup"],
        error_kinds=_error_kinds(verdict),
        error_texts=_error_texts(view),
        target_rows=_target_rows(verdict),
        run_rows=_run_rows(view),
        command=command_line(view, verdict),
        spans=spans_section(view),
        profile=profile_section(view.run.path),
        cost=cost,
        cost_rows=cost_words.cost_rows(cost) if cost_words.told(cost) else [],
        cost_basis=cost_words.basis(cost),
        cost_point=cost_words.point_of(cost),
    )


def command_line(view: RunView, verdict: Verdict) -> str:
    """A command that repeats the run: the recorded one when the manifest has it, else rebuilt from the facts."""
    recorded = list(view.manifest.command)
    if recorded:
        if "--seed" not in recorded:
            recorded += ["--seed", str(view.manifest.seed)]
        return visible(shlex.join(recorded), length_max=2000)
    command = ["pinchpoint", "run", visible(verdict.target.url)]
    if verdict.target.model:
        command += ["--model", visible(verdict.target.model)]
    if not verdict.slos_derived:
        for slo in verdict.slos:
            command += ["--slo", slo.text]
    return shlex.join([*command, "--seed", str(view.manifest.seed)])


@cache
def _template() -> Template:
    filters: dict[str, Callable[..., Any]] = {
        "duration": format_duration,
        "ratio": format_ratio,
        "count": format_count,
        "rate": words.rate,
        "probability": words.probability,
        "strength": words.strength_word,
        "strongest": words.strongest,
        "sentence": words.sentence,
        "offered": words.offered,
        "sign": words.sign,
        "clauses": words.clauses,
        "coded": _coded,
    }
    names: dict[str, Any] = {
        "MISSING": MISSING,
        "quantity": words.quantity,
        "quantities": words.quantities,
        "comparison": words.comparison,
        "capacity_figure": words.capacity_figure,
        "capacity_confidence": words.capacity_confidence,
        "reasons_that_matter": words.reasons_that_matter,
        "failed_requests": words.failed_requests,
        "attainment": _attainment,
        "all_evidence": _all_evidence,
        "width_of": _width_of,
        "decision_of": words.decision_of,
        "decision_words": words.DECISION_WORDS,
        "stage_label": words.stage_label,
        "notes_of": words.notes,
        "money": cost_words.money,
        "joules": cost_words.joules,
        "MONEY_COLUMNS": cost_words.MONEY_COLUMNS,
        "ENERGY_COLUMNS": cost_words.ENERGY_COLUMNS,
        "thousandfold": cost_words.thousandfold,
        "told_rivals": words.told_rivals,
        "NEUTRAL": words.NEUTRAL,
    }
    return template("report.html.j2", filters, names)


def _coded(text: str) -> Markup:
    """Our own words, in which `backticks` stand around what is typed."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _attainment(stage: StageResult | ClassResult, slo_text: str) -> str:
    met, counted = stage.attainment.get(slo_text, (0, 0))
    return f"{format_ratio(met / counted)} of {counted}" if counted else MISSING


def _all_evidence(finding: Finding) -> list:
    return words.strongest(finding.evidence) + words.strongest(finding.against)


def _width_of(strength: float) -> float:
    """Bar length 0 to 100 for a log likelihood ratio; "very strong" fills it."""
    return round(min(abs(strength) / words.STRENGTH_WORDS[0][0], 1.0) * 100)


def _error_kinds(verdict: Verdict) -> list[tuple[str, int]]:
    total: Counter[str] = Counter()
    for stage in verdict.stages:
        total.update(stage.errors)
    return total.most_common()


def _error_texts(view: RunView) -> list[tuple[str, str, int]]:
    """(status, message, requests) of the most frequent error messages."""
    r = view.requests
    pairs = Counter(
        (str(status), visible(error)) for status, error in zip(r.status, r.error, strict=True) if error is not None
    )
    return [(status, error, count) for (status, error), count in pairs.most_common(ERROR_TEXTS_SHOWN)]


def _target_rows(verdict: Verdict) -> list[tuple[str, str, str]]:
    """(fact, value, how it is known)."""
    target = verdict.target
    known = {True: "yes", False: "no", None: MISSING}
    rows = [
        ("URL", target.url, ""),
        ("Engine", f"{target.engine} {target.engine_version or ''}".strip(), "; ".join(target.engine_evidence)),
        ("API", target.api or MISSING, ""),
        ("Model", target.model or MISSING, f"{len(target.models)} offered" if target.models else ""),
        ("Streams answers", known[target.streaming], ""),
        ("Token usage in the stream", known[target.usage_in_stream], ""),
        ("Metrics", target.metrics_url or MISSING, ""),
    ]
    limits = {
        "max_sequences": "Sequences at once",
        "kv_tokens": "KV cache, tokens",
        "context_tokens": "Context, tokens",
        "max_batched_tokens": "Tokens per step",
    }
    for field, label in limits.items():
        rows.append((label, format_count(getattr(target.limits, field)), target.limit_sources.get(field, "")))
    if target.prompt_overhead_tokens is not None:
        rows.append(("Chat template", f"{target.prompt_overhead_tokens:.0f} tokens per prompt", "two probe prompts"))
    return rows


def _run_rows(view: RunView) -> list[tuple[str, str]]:
    manifest = view.manifest
    rows = [
        ("Run", manifest.run_id),
        ("Started", manifest.started_wall),
        ("Status", manifest.status + (f": {manifest.abort_reason}" if manifest.abort_reason else "")),
        ("Pinchpoint", manifest.pinchpoint_version),
        ("Seed", str(manifest.seed)),
        *([("Workload", manifest.workload)] if manifest.workload else []),
        *([("Classes", ", ".join(manifest.classes))] if len(manifest.classes) > 1 else []),
        ("Time", "virtual (made by the lab)" if manifest.virtual else "real"),
        ("Requests", format_count(view.requests.count)),
    ]
    for heading, facts in (("Host", manifest.host), ("Clock", manifest.clock)):
        for key, value in facts.items():
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            rows.append((f"{heading}: {key.replace('_', ' ')}", text))
    return rows
