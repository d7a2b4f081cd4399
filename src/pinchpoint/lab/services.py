"""A healthy service for a GPU and a model: as many GPUs as the model needs."""

from collections.abc import Mapping

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.lab.calibrations import calibration
from pinchpoint.lab.params import LabParams

TENSOR_PARALLEL = (1, 2, 4, 8)
"""Sizes that servers have; the heads of all known models can be divided by them."""
KV_TOKENS_MIN = 65_536
"""A service has room for so many tokens, or for one request of full length where that is more (vLLM refuses to start
below); else more GPUs are taken. Eight requests of 8,192 tokens are the least that makes a batch worth its name."""
DIALECTS = ("vllm", "sglang", "tgi", "llama.cpp")


def service_of(gpu: str, model: str, dialect: str = "vllm") -> LabParams:
    """Raises UsageError for what the lab does not know, and for a model that does not fit on eight such GPUs."""
    if dialect not in DIALECTS:
        raise UsageError(f"the lab does not speak {dialect!r}; choose one of {', '.join(DIALECTS)}")
    fits: LabParams | None = None
    for size in TENSOR_PARALLEL:
        params = LabParams(gpu=gpu, model=model, dialect=dialect, tensor_parallel=size)  # pyright: ignore
        params = msgspec.structs.replace(params, weight_precision=params.model_shape.published_precision)
        _ = params.gpu_spec
        try:
            tokens = params.num_kv_blocks() * params.block_size_tokens
        except UsageError:
            continue
        fits = params
        if tokens >= max(KV_TOKENS_MIN, params.model_shape.context_tokens):
            break
    if fits is None:
        precision = LabParams(model=model).model_shape.published_precision
        raise UsageError(
            f"{model} in {precision} does not fit on {TENSOR_PARALLEL[-1]} x {gpu}; choose a smaller "
            "model, a GPU with more memory, or --set weight_precision=fp8"
        )
    fits.validate()
    return fits


def healthy_service(
    gpu: str | None,
    model: str | None,
    dialect: str | None = None,
    *,
    like: str | None = None,
    settings: Mapping[str, object] | None = None,
) -> LabParams:
    """The service of a measured deployment (`like`), or else of a GPU and a model, with `settings` on top.

    gpu, model, dialect None: the deployment's, or the lab's defaults. Raises UsageError as `service_of`, and for names
    and values that there are not.
    """
    default = LabParams()
    if like is not None:
        measured = calibration(like)
        chosen = {
            "dialect": dialect or measured.dialect or default.dialect,
            **({"gpu": gpu} if gpu else {}),
            **({"model": model} if model else {}),
        }
        return measured.applied(default).changed({**chosen, **(settings or {})})
    settings = dict(settings or {})
    own_gpu, own_model = settings.pop("gpu", None), settings.pop("model", None)
    base = service_of(
        str(own_gpu or gpu or default.gpu), str(own_model or model or default.model), dialect or default.dialect
    )
    return base.changed(settings)
