"""Every target by name: what it is, where its API lies, and how to make it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.targets import embeddings, messages, native, ollama, ranking, responses, tgi
from pinchpoint.targets.embeddings import EmbeddingsTarget
from pinchpoint.targets.kserve import KserveTarget, TritonGenerateTarget
from pinchpoint.targets.messages import MessagesTarget
from pinchpoint.targets.native import SglangTarget, VllmGenerateTarget, VllmTokensTarget
from pinchpoint.targets.ollama import OllamaTarget
from pinchpoint.targets.openai import CHAT_PATH, COMPLETIONS_PATH, OpenAITarget
from pinchpoint.targets.options import Options
from pinchpoint.targets.ranking import RerankTarget, ScoreTarget
from pinchpoint.targets.responses import ResponsesTarget
from pinchpoint.targets.target import Target, TargetSpec, Transport
from pinchpoint.targets.tensors import KSERVE_GRPC_OPTIONS, OPTIONS, TFSERVING_GRPC_OPTIONS
from pinchpoint.targets.tfserving import TfServingTarget
from pinchpoint.targets.tgi import TgiTarget

PLUGIN = "plugin"
MODEL = "{model}"
"""Stands for the model's name in a path."""


class TargetKind(msgspec.Struct, frozen=True):
    """path: behind the base URL, {model} in place of the model's name; "" where options decide it. other_paths: where
    the API lies, too. options: name -> what it sets; None: any, the target checks them itself."""

    name: str
    description: str
    path: str
    make: Callable[[TargetSpec], Target]
    streams: bool = True
    generates: bool = True
    transport: Transport = "http"
    options: Mapping[str, str] | None = {}
    other_paths: tuple[str, ...] = ()


BODY_OPTION = {"body": "members that are added to the body of every request; they have the last word"}
LENGTH_OPTION = {"length_field": 'what the bound of the output is called; default "max_tokens"'}
STREAM_OPTION = {"stream_input": 'name of the flag that asks for a stream; "" for none'}
VERSION_OPTION = {"version": "of the model; the service chooses unless it is given"}
GENERATE_OPTIONS = {name: OPTIONS[name] for name in ("input", "output", "length_input")}


def _extra(spec: TargetSpec) -> dict[str, Any]:
    return Options(spec).table("body")


def _openai(default: str) -> Callable[[TargetSpec], Target]:
    return lambda spec: OpenAITarget(
        spec.path or default,
        spec.model,
        spec.engine,
        stream=spec.stream,
        usage=spec.usage,
        extra=_extra(spec),
        length_field=Options(spec).text("length_field", "max_tokens"),
    )


def _embeddings(spec: TargetSpec) -> Target:
    encoding = Options(spec).choice("encoding_format", embeddings.FORMATS, "float")
    return EmbeddingsTarget(spec, _extra(spec), encoding=encoding)


def _rerank(spec: TargetSpec) -> Target:
    shape = Options(spec).choice("shape", ranking.SHAPES, "tei" if spec.engine == "tei" else "jina")
    return RerankTarget(spec, _extra(spec), shape=shape)


def _tokens(spec: TargetSpec) -> Target:
    options = Options(spec)
    first_id = options.count("first_token_id", native.FIRST_TOKEN_ID)
    return VllmTokensTarget(spec, _extra(spec), first_id=first_id, ids=options.count("token_ids", native.TOKEN_IDS))


def _kserve_grpc(spec: TargetSpec) -> Target:
    from pinchpoint.targets import grpc_kserve

    return grpc_kserve.make(spec)


def _tfserving_grpc(spec: TargetSpec) -> Target:
    from pinchpoint.targets import grpc_tfserving

    return grpc_tfserving.make(spec)


def _custom(spec: TargetSpec) -> Target:
    from pinchpoint.targets import custom

    return custom.make(spec)


def _plugin(spec: TargetSpec) -> Target:
    from pinchpoint.targets import plugin

    return plugin.make(spec)


KINDS = (
    TargetKind("chat", "OpenAI chat completions", CHAT_PATH, _openai(CHAT_PATH), options=BODY_OPTION | LENGTH_OPTION),
    TargetKind(
        "completions",
        "OpenAI text completions",
        COMPLETIONS_PATH,
        _openai(COMPLETIONS_PATH),
        options=BODY_OPTION | LENGTH_OPTION,
    ),
    TargetKind(
        "responses",
        "OpenAI responses",
        responses.PATH,
        lambda spec: ResponsesTarget(spec, _extra(spec)),
        options=BODY_OPTION,
    ),
    TargetKind(
        "messages",
        "Anthropic messages",
        messages.PATH,
        lambda spec: MessagesTarget(spec, _extra(spec)),
        options=BODY_OPTION,
    ),
    TargetKind(
        "embeddings",
        "OpenAI embeddings",
        embeddings.PATH,
        _embeddings,
        streams=False,
        generates=False,
        options={"encoding_format": f"of the vectors: {' or '.join(embeddings.FORMATS)}", **BODY_OPTION},
    ),
    TargetKind(
        "rerank",
        "ranking of documents, as Jina, Cohere, vLLM, llama.cpp and TEI have it",
        ranking.RERANK_PATH,
        _rerank,
        streams=False,
        generates=False,
        options={"shape": f"of requests and answers: {' or '.join(ranking.SHAPES)}", **BODY_OPTION},
        other_paths=(ranking.TEI_RERANK_PATH, "/v2/rerank"),
    ),
    TargetKind(
        "score",
        "vLLM's scores of pairs of texts",
        ranking.SCORE_PATH,
        lambda spec: ScoreTarget(spec, _extra(spec)),
        streams=False,
        generates=False,
        options=BODY_OPTION,
        other_paths=("/score",),
    ),
    TargetKind(
        "ollama",
        "Ollama's chat",
        ollama.CHAT_PATH,
        lambda spec: OllamaTarget(spec, _extra(spec), chat=True),
        options=BODY_OPTION,
    ),
    TargetKind(
        "ollama-generate",
        "Ollama's generate",
        ollama.GENERATE_PATH,
        lambda spec: OllamaTarget(spec, _extra(spec), chat=False),
        options=BODY_OPTION,
    ),
    TargetKind(
        "tgi",
        "Text Generation Inference's own API",
        tgi.STREAM_PATH,
        lambda spec: TgiTarget(spec, _extra(spec)),
        options=BODY_OPTION,
        other_paths=(tgi.PATH,),
    ),
    TargetKind(
        "vllm-generate",
        "generate of vLLM's old demonstration server",
        native.GENERATE_PATH,
        lambda spec: VllmGenerateTarget(spec, _extra(spec)),
        options=BODY_OPTION,
    ),
    TargetKind(
        "vllm-tokens",
        "vLLM's API of tokens alone",
        native.TOKENS_PATH,
        _tokens,
        options={
            "first_token_id": "smallest id of a token that is sent",
            "token_ids": "how many different ids are sent",
            **BODY_OPTION,
        },
    ),
    TargetKind(
        "sglang-generate",
        "SGLang's own API",
        native.GENERATE_PATH,
        lambda spec: SglangTarget(spec, _extra(spec)),
        options=BODY_OPTION,
    ),
    TargetKind(
        "triton-generate",
        "Triton's generate extension",
        f"/v2/models/{MODEL}/generate_stream",
        lambda spec: TritonGenerateTarget(spec, _extra(spec)),
        options={**GENERATE_OPTIONS, **STREAM_OPTION, **VERSION_OPTION, **BODY_OPTION},
        other_paths=(f"/v2/models/{MODEL}/generate",),
    ),
    TargetKind(
        "kserve",
        "Open Inference Protocol (KServe v2) over HTTP, as Triton has it",
        f"/v2/models/{MODEL}/infer",
        lambda spec: KserveTarget(spec, _extra(spec)),
        streams=False,
        options={**OPTIONS, **STREAM_OPTION, **VERSION_OPTION, **BODY_OPTION},
    ),
    TargetKind(
        "kserve-grpc",
        "Open Inference Protocol (KServe v2) over gRPC",
        "",
        _kserve_grpc,
        transport="grpc",
        options=KSERVE_GRPC_OPTIONS,
    ),
    TargetKind(
        "tfserving",
        "TensorFlow Serving's predict over HTTP",
        f"/v1/models/{MODEL}:predict",
        lambda spec: TfServingTarget(spec, _extra(spec)),
        streams=False,
        generates=False,
        options={
            **OPTIONS,
            "format": "of requests: row (instances) or column (inputs)",
            "signature_name": "of the model that is asked; the service has a default",
            **VERSION_OPTION,
            **BODY_OPTION,
        },
    ),
    TargetKind(
        "tfserving-grpc",
        "TensorFlow Serving's predict over gRPC",
        "",
        _tfserving_grpc,
        streams=False,
        generates=False,
        transport="grpc",
        options=TFSERVING_GRPC_OPTIONS,
    ),
    TargetKind("custom", "any HTTP service, by a template of its requests and answers", "", _custom, options=None),
    TargetKind(PLUGIN, "a target of your own: plugin:NAME", "", _plugin, options=None),
)
TARGETS: dict[str, TargetKind] = {kind.name: kind for kind in KINDS}


def kind_of(api: str) -> TargetKind:
    """By name, or by a path that ends like one of the target's own. Raises UsageError with the choices."""
    name = PLUGIN if api.startswith(f"{PLUGIN}:") else api
    if name in TARGETS:
        return TARGETS[name]
    if api.startswith("/"):
        found = [(len(path), kind) for kind in KINDS for path in _paths(kind) if _ends_with(api, path)]
        longest = max((length for length, _ in found), default=0)
        kinds = [kind for length, kind in found if length == longest]
        if len(kinds) == 1:
            return kinds[0]
        if kinds:
            raise UsageError(
                f"{api} is the path of several APIs; say which: {' or '.join(kind.name for kind in kinds)}"
            )
    raise UsageError(f"{api!r} is no target; choose from {', '.join(TARGETS)}, or give the path of one of their APIs")


def split_url(url: str) -> tuple[str, str | None]:
    """A URL that ends with the path of an API: its base, and that path. Other URLs stay as they are, also those with a
    model in their path: the model's name is asked for elsewhere."""
    url = url.rstrip("/")
    found = [path for kind in KINDS for path in _paths(kind) if MODEL not in path and url.endswith(path)]
    path = max(found, key=len, default="")
    base = url.removesuffix(path)
    return (base, path) if path and not base.endswith(":/") else (url, None)


def make_target(spec: TargetSpec) -> Target:
    """Raises UsageError for a name or options that cannot be used."""
    kind = kind_of(spec.api)
    if spec.api.startswith("/") and spec.path is None:
        spec = msgspec.structs.replace(spec, path=spec.api)
    unknown = sorted(set(spec.options) - set(kind.options)) if kind.options is not None else []
    if unknown:
        known = ", ".join(kind.options or ())
        raise UsageError(f"{kind.name} has no option {', '.join(unknown)}; it has {known}")
    return kind.make(spec)


def _paths(kind: TargetKind) -> tuple[str, ...]:
    return (kind.path, *kind.other_paths) if kind.path else ()


def _ends_with(given: str, path: str) -> bool:
    return re.search(re.escape(path).replace(re.escape(MODEL), r"[^/:]+(?:/versions/[^/:]+)?") + "$", given) is not None
