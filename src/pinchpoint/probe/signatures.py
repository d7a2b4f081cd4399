"""Which engine a service is, from weighted evidence. The evidence is data: signatures.toml beside this file."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from pinchpoint.probe.exchange import HTTP_OK, Page

SIGNATURES_PATH = Path(__file__).with_name("signatures.toml")
_METRIC_NAME = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)[{ \t]", re.MULTILINE)
_NOT_A_METRICS_PAGE = (b"<", b"{", b"[")


class EvidenceTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See signatures.toml for what each field tests."""

    weight: int
    path: str | None = None
    json_has: tuple[str, ...] = ()
    json_equals: dict[str, str] = {}
    body_contains: str | None = None
    header: str | None = None
    contains: str | None = None
    owned_by: str | None = None
    metrics_prefix: str | None = None


class EngineSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    evidence: tuple[EvidenceTest, ...]
    version: tuple[tuple[str, str], ...] = ()
    """(path, key) pairs: where the version may be told."""
    health_paths: tuple[str, ...] = ()
    """Paths that do not touch the model, cheapest first; empty: the general list."""
    metrics_port: int | None = None
    hints: dict[str, str] = {}
    """Why a fact is not known, and what to do: keys are fields of model.Limits, and `metrics`."""


class Signatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    minimum_weight: int
    metrics_paths: tuple[str, ...]
    health_paths: tuple[str, ...]
    engine: tuple[EngineSignature, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path some test or version looks at, /v1/models first."""
        wanted = ["/v1/models"]
        for engine in self.engine:
            wanted += [test.path for test in engine.evidence if test.path is not None]
            wanted += [path for path, _ in engine.version]
        return tuple(dict.fromkeys(wanted))

    def named(self, name: str) -> EngineSignature | None:
        return next((engine for engine in self.engine if engine.name == name), None)


class Identity(msgspec.Struct, frozen=True):
    """The winner, or None; `evidence` is a sentence per test passed; `rival` scored as high, if any did."""

    engine: EngineSignature | None
    evidence: tuple[str, ...] = ()
    rival: str | None = None


@cache
def load_signatures() -> Signatures:
    return msgspec.convert(tomllib.loads(SIGNATURES_PATH.read_text(encoding="utf-8")), Signatures)


def metric_names(page: Page) -> frozenset[str]:
    """Names on a Prometheus page; empty when the page is something else (HTML, JSON, an error)."""
    if page.status != HTTP_OK or page.body.lstrip().startswith(_NOT_A_METRICS_PAGE):
        return frozenset()
    return frozenset(name.decode() for name in _METRIC_NAME.findall(page.body))


def model_cards(page: Page | None) -> list[dict[str, Any]]:
    """The `data` list of an OpenAI /v1/models answer, or the `models` list of Ollama's."""
    content = page.object() if page is not None and page.status == HTTP_OK else {}
    cards = content.get("data") or content.get("models")
    return [card for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []


def identify(signatures: Signatures, pages: Mapping[str, Page], metrics: Page | None) -> Identity:
    """Scores every engine on the pages at hand (path -> answer). Of two on a par the first listed wins; it is said."""
    names = metric_names(metrics) if metrics is not None else frozenset()
    owners = [card.get("owned_by") for card in model_cards(pages.get("/v1/models"))]
    scored: list[tuple[int, EngineSignature, tuple[str, ...]]] = []
    for engine in signatures.engine:
        found = [(test.weight, say) for test in engine.evidence if (say := _passes(test, pages, names, owners))]
        scored.append((sum(weight for weight, _ in found), engine, tuple(say for _, say in found)))
    scored.sort(key=lambda entry: -entry[0])
    (best, engine, evidence), (second, rival, _) = scored[:2]
    if best < signatures.minimum_weight:
        return Identity(None)
    return Identity(engine, evidence, rival.name if second == best else None)


def _passes(test: EvidenceTest, pages: Mapping[str, Page], names: Iterable[str], owners: list[Any]) -> str | None:
    """What the test saw, as a sentence; None when it failed or could not look."""
    if test.metrics_prefix is not None:
        hit = any(name.startswith(test.metrics_prefix) for name in names)
        return f"metric names start with {test.metrics_prefix}" if hit else None
    if test.owned_by is not None:
        return f"/v1/models says owned_by {test.owned_by}" if test.owned_by in owners else None
    if test.header is not None and test.contains is not None:
        values = (page.headers.get(test.header, "") for page in pages.values())
        hit = any(test.contains.lower() in value.lower() for value in values)
        return f"header {test.header} holds {test.contains}" if hit else None
    page = pages.get(test.path or "")
    if page is None:
        return None
    if test.body_contains is not None:
        return f'{test.path} answered "{test.body_contains}"' if test.body_contains in page.text else None
    content = page.object()
    if page.status != HTTP_OK or not content or not all(key in content for key in test.json_has):
        return None
    if any(content.get(key) != value for key, value in test.json_equals.items()):
        return None
    told = [*test.json_has, *(f"{key} {value}" for key, value in test.json_equals.items())]
    return f"{test.path} told {', '.join(told)}"
