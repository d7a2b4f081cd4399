"""What `pinchpoint probe` prints: facts about a service, where each comes from, and what could not be found out."""

from pinchpoint.model import TargetFacts
from pinchpoint.report.literal import visible
from pinchpoint.units import format_count

LABEL_COLUMNS = 18


def facts_text(facts: TargetFacts) -> str:
    """Plain text, one fact a line. Everything that came from the server is made harmless for a terminal."""
    version = f" {visible(facts.engine_version)}" if facts.engine_version else ""
    rows = [
        ("service", visible(facts.url)),
        ("engine", visible(facts.engine) + version),
        ("known by", "; ".join(map(visible, facts.engine_evidence)) or "nothing specific"),
        ("API", visible(facts.api) if facts.api else "none that Pinchpoint can load"),
        ("models", ", ".join(map(visible, facts.models)) or "not told"),
        ("model to load", visible(facts.model) if facts.model else "none"),
        ("streaming", _yes(facts.streaming)),
        ("usage in stream", _yes(facts.usage_in_stream)),
    ]
    limits = {
        "max sequences": ("max_sequences", facts.limits.max_sequences),
        "KV cache": ("kv_tokens", facts.limits.kv_tokens),
        "context": ("context_tokens", facts.limits.context_tokens),
        "batched tokens": ("max_batched_tokens", facts.limits.max_batched_tokens),
    }
    for label, (field, value) in limits.items():
        if value is not None:
            unit = "" if field == "max_sequences" else " tokens"
            source = visible(facts.limit_sources.get(field, "the service"))
            rows.append((label, f"{format_count(value)}{unit} (from {source})"))
    rows += [
        ("metrics", visible(facts.metrics_url) if facts.metrics_url else "none found"),
        ("null request", visible(facts.health_path) if facts.health_path else "none found"),
        ("server processes", ", ".join(map(str, facts.server_pids)) or "not on this host, or not visible"),
    ]
    lines = [f"{label:<{LABEL_COLUMNS}}{value}" for label, value in rows]
    if facts.unknown:
        lines += ["", "could not be found out"]
        lines += [f"  - {visible(sentence, 300)}" for sentence in facts.unknown]
    return "\n".join(lines) + "\n"


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "not known"}[value]
