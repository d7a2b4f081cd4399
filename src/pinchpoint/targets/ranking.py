"""Ranking documents against a query: rerank as Jina, Cohere, vLLM and llama.cpp have it or as TEI has it, and vLLM's
score. Nothing is generated; the last message of a prompt is the query.
"""

from abc import abstractmethod
from typing import Any

import msgspec

from pinchpoint.prompt import Prompt
from pinchpoint.targets.embeddings import InputUsage, input_usage
from pinchpoint.targets.forms import merged
from pinchpoint.targets.reading import decoded
from pinchpoint.targets.target import Chunk, Target, TargetSpec, Usage, error_text

RERANK_PATH = "/v1/rerank"
TEI_RERANK_PATH = "/rerank"
SCORE_PATH = "/v1/score"
SHAPES = ("jina", "tei")
"""Of rerank. jina: model, query, documents -> results. tei: query, texts -> a list of ranks."""


class RankingTarget(Target):
    """What rerank and score have in common: one answer, which holds a score for each document."""

    stream = False
    needs_finish = False
    generates = False

    def __init__(self, path: str, extra: dict[str, Any]) -> None:
        self.path = path
        self._extra = extra

    @abstractmethod
    def body(self, query: str, documents: tuple[str, ...]) -> dict[str, Any]:
        """The request's members."""
        ...

    def build(self, prompt: Prompt) -> bytes:
        body = self.body(prompt.messages[-1].text, prompt.documents or (prompt.messages[-1].text,))
        return msgspec.json.encode(merged(body, self._extra) if self._extra else body)

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        raise ValueError("a stream is no ranking")

    def parse_answer(self, body: bytes) -> Chunk:
        told = decoded(_decoder, body, "a ranking")
        ranks = told if isinstance(told, list) else told.results if told.results is not None else told.data
        if isinstance(told, _Answer):
            complaint = told.error or (told.message if told.object == "error" or ranks is None else None) or None
            if complaint or (ranks is None and told.detail):
                return Chunk(error=error_text(complaint or told.detail))
        if not ranks:
            raise ValueError("the answer ranks no documents")
        if any(rank.relevance_score is None and rank.score is None for rank in ranks):
            raise ValueError("a document of the answer has no score")
        return Chunk(content=True, usage=_usage(told) if isinstance(told, _Answer) else None)


class RerankTarget(RankingTarget):
    name = "rerank"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any], *, shape: str) -> None:
        super().__init__(spec.path or (TEI_RERANK_PATH if shape == "tei" else RERANK_PATH), extra)
        self._model = spec.model
        self._tei = shape == "tei"

    def body(self, query: str, documents: tuple[str, ...]) -> dict[str, Any]:
        if self._tei:
            return {"query": query, "texts": documents}
        return {"model": self._model, "query": query, "documents": documents}


class ScoreTarget(RankingTarget):
    name = "score"

    def __init__(self, spec: TargetSpec, extra: dict[str, Any]) -> None:
        super().__init__(spec.path or SCORE_PATH, extra)
        self._model = spec.model

    def body(self, query: str, documents: tuple[str, ...]) -> dict[str, Any]:
        return {"model": self._model, "text_1": query, "text_2": documents}


class _Rank(msgspec.Struct):
    relevance_score: float | None = None
    score: float | None = None


class _Meta(msgspec.Struct):
    tokens: InputUsage | None = None


class _Answer(msgspec.Struct):
    results: list[_Rank] | None = None
    data: list[_Rank] | None = None
    usage: InputUsage | None = None
    meta: _Meta | None = None
    error: Any = None
    detail: Any = None
    message: Any = None
    object: Any = None


_decoder: msgspec.json.Decoder[_Answer | list[_Rank]] = msgspec.json.Decoder(_Answer | list[_Rank])


def _usage(told: _Answer) -> Usage | None:
    """Cohere tells its counts inside of `meta`."""
    return input_usage(told.usage) or input_usage(told.meta.tokens if told.meta is not None else None)
