"""The healthy service that flags describe: a GPU and a model, or a measured deployment, with settings on top."""

import pytest

from pinchpoint.errors import UsageError
from pinchpoint.lab.calibrations import load_calibrations
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.services import healthy_service, service_of


def test_without_a_word_it_is_the_default() -> None:
    assert healthy_service(None, None) == LabParams()


def test_a_model_is_given_the_gpus_that_it_needs() -> None:
    assert [service_of("H100", model).tensor_parallel for model in ("llama-3-8b", "llama-3-70b")] == [1, 4]


def test_settings_have_the_last_word() -> None:
    made = healthy_service("H100", "llama-3-70b", settings={"tensor_parallel": 8, "host.cores": 4, "gpu": "A100"})
    assert (made.gpu, made.model, made.tensor_parallel, made.host.cores) == ("A100", "llama-3-70b", 8, 4)


@pytest.mark.parametrize("name", load_calibrations())
def test_every_measured_deployment_is_a_service_that_can_be(name: str) -> None:
    made = healthy_service(None, None, "sglang", like=name)
    wanted = load_calibrations()[name].params
    assert {key: made.value(key) for key in wanted} == wanted
    assert made.dialect == "sglang"


def test_flags_change_a_measured_deployment() -> None:
    made = healthy_service("H200", None, like="vllm-qwen3-32b-bf16-h100", settings={"max_num_seqs": 32})
    assert (made.gpu, made.model, made.max_num_seqs) == ("H200", "qwen3-32b", 32)


def test_an_unknown_deployment_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="vllm-qwen3-32b-bf16-h100"):
        healthy_service(None, None, like="hearsay")


@pytest.mark.parametrize(
    "gpu, model, gpus, precision",
    [
        ("H100", "llama-3.1-8b", 1, "bf16"),
        ("H100", "llama-3.1-70b", 4, "bf16"),
        ("H200", "deepseek-v3", 8, "fp8"),
        ("RTX4090", "llama-3-8b", 2, "bf16"),
    ],
)
def test_a_model_takes_the_gpus_that_people_give_it(gpu: str, model: str, gpus: int, precision: str) -> None:
    made = healthy_service(gpu, model)
    assert (made.tensor_parallel, made.weight_precision) == (gpus, precision)


def test_a_model_that_fits_nowhere_is_told_with_its_precision() -> None:
    with pytest.raises(UsageError, match="deepseek-v3 in fp8 does not fit on 8 x A100"):
        healthy_service("A100", "deepseek-v3")


def test_heads_are_divided_evenly_or_not_at_all() -> None:
    with pytest.raises(UsageError, match="does not divide the 32 heads of llama-3-8b"):
        healthy_service("H100", "llama-3-8b", settings={"tensor_parallel": 3})


@pytest.mark.parametrize(
    ("dialect", "like", "expected"),
    [
        (None, "sglang-deepseek-v3-fp8-b200", "sglang"),
        ("vllm", "sglang-deepseek-v3-fp8-b200", "vllm"),
        (None, "trtllm-qwen3-32b-fp8-h100", "vllm"),
        (None, None, "vllm"),
    ],
)
def test_a_measured_deployment_speaks_as_its_engine_unless_told_otherwise(
    dialect: str | None, like: str | None, expected: str
) -> None:
    assert healthy_service(None, None, dialect, like=like).dialect == expected
