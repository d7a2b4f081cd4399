"""Every target by name: what it is, where its API lies, and how to make it."""

from collections.abc import Callable

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.targets.openai import CHAT_PATH, COMPLETIONS_PATH, OpenAITarget
from pinchpoint.targets.target import Target, TargetSpec
from pinchpoint.targets.tensors import KSERVE_GRPC_OPTIONS, TFSERVING_GRPC_OPTIONS


class TargetKind(msgspec.Struct, frozen=True):
    """path: behind the base URL; "" where it depends on the model or on options. transport: http or grpc. options: name
    -> what it sets."""

    name: str
    description: str
    path: str
    make: Callable[[TargetSpec], Target]
    streams: bool = True
    generates: bool = True
    transport: str = "http"
    options: dict[str, str] = {}


def _openai(default: str) -> Callable[[TargetSpec], Target]:
    return lambda spec: OpenAITarget(
        spec.path or default, spec.model, spec.engine, stream=spec.stream, usage=spec.usage
    )


def _kserve_grpc(spec: TargetSpec) -> Target:
    from pinchpoint.targets import grpc_kserve  # needs an extra

    return grpc_kserve.make(spec)


def _tfserving_grpc(spec: TargetSpec) -> Target:
    from pinchpoint.targets import grpc_tfserving  # needs an extra

    return grpc_tfserving.make(spec)


KINDS = (
    TargetKind("chat", "OpenAI chat completions", CHAT_PATH, _openai(CHAT_PATH)),
    TargetKind("completions", "OpenAI text completions", COMPLETIONS_PATH, _openai(COMPLETIONS_PATH)),
    TargetKind(
        "kserve-grpc",
        "KServe v2 (Open Inference Protocol) over gRPC, with Triton's streams",
        "",
        _kserve_grpc,
        transport="grpc",
        options=KSERVE_GRPC_OPTIONS,
    ),
    TargetKind(
        "tfserving-grpc",
        "TensorFlow Serving's Predict over gRPC",
        "",
        _tfserving_grpc,
        streams=False,
        generates=False,
        transport="grpc",
        options=TFSERVING_GRPC_OPTIONS,
    ),
)
TARGETS: dict[str, TargetKind] = {kind.name: kind for kind in KINDS}


def kind_of(api: str) -> TargetKind:
    """By name, or by a path that ends like the target's own. Raises UsageError with the choices."""
    if api in TARGETS:
        return TARGETS[api]
    if api.startswith("/"):
        for kind in KINDS:
            if kind.path and api.endswith(kind.path):
                return kind
    raise UsageError(f"{api!r} is no target; choose from {', '.join(TARGETS)}, or give the path of one of their APIs")


def make_target(spec: TargetSpec) -> Target:
    """Raises UsageError for a name or options that cannot be used."""
    kind = kind_of(spec.api)
    if spec.api.startswith("/") and spec.path is None:
        spec = msgspec.structs.replace(spec, path=spec.api)
    return kind.make(spec)
