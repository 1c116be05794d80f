"""What tensorrt_llm.LLM is given: by the parameters, by a call, and by the process that loads it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.calls import EngineCall, UnsupportedError
from engine.llmapi_arguments import (
    LibrarySampler,
    llm_arguments,
    prepare_process,
    sampler_of,
    sampling_arguments,
    version_of,
)
from engine.parameters import EngineParameters
from engine.sampling import EngineSampling
from tests.engine.test_serving import committed
from tests.fakes.trtllm import SamplingParams

CALL = EngineCall(input_ids=(5, 6, 7), output_tokens_max=9, end_id=2)
OBEYS_ALL = LibrarySampler(sampler_type="TRTLLMSampler")
IGNORES = LibrarySampler(sampler_type="TorchSampler", penalties=False, seeds=False)


def test_the_parameters_become_the_librarys() -> None:
    arguments = llm_arguments(committed(gpt_model_path="/models/llama", kv_cache_host_memory_bytes="1000"))
    assert arguments["model"] == "/models/llama"
    assert arguments["enable_chunked_prefill"]
    cache = {"enable_block_reuse": True, "max_tokens": 81_920, "host_cache_size": 1000}
    assert arguments["kv_cache_config"] == {**cache, "free_gpu_memory_fraction": 0.9}
    assert arguments["scheduler_config"] == {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}
    with pytest.raises(ValueError, match="'gpt_model_path' must name the model"):
        llm_arguments(committed())
    with pytest.raises(ValueError, match="'kv_cache_free_gpu_mem_fraction' must be above 0 and below 1, not '90'"):
        llm_arguments(committed(gpt_model_path="/models/llama", kv_cache_free_gpu_mem_fraction="90"))


def test_what_is_left_out_has_the_size_of_a_gpu_and_not_of_the_cpu_engine() -> None:
    arguments = llm_arguments(EngineParameters({"gpt_model_path": "/models/llama"}))
    sizes = (arguments["max_batch_size"], arguments["max_num_tokens"], arguments["max_seq_len"])
    assert sizes == (64, 8192, 16384)
    assert arguments["kv_cache_config"] == {"enable_block_reuse": True, "free_gpu_memory_fraction": 0.9}


def test_a_call_becomes_sampling_parameters() -> None:
    asked = replace(
        CALL, stop_words=((8, 9), (10,)), bad_words=((4,),), sampling=EngineSampling(top_k=40, min_tokens=3, seed=8)
    )
    arguments = sampling_arguments(asked, OBEYS_ALL)
    assert (arguments["max_tokens"], arguments["end_id"], arguments["ignore_eos"]) == (9, 2, False)
    assert (arguments["stop_token_ids"], arguments["bad_token_ids"]) == ([10], [4])
    assert (arguments["top_k"], arguments["top_p"], arguments["temperature"]) == (40, None, 1.0)
    assert (arguments["min_tokens"], arguments["seed"], arguments["return_perf_metrics"]) == (3, 8, False)
    assert sampling_arguments(replace(CALL, end_id=None), OBEYS_ALL)["ignore_eos"]


@pytest.mark.parametrize(
    ("sampling", "greedy"),
    [
        (EngineSampling(), True),
        (EngineSampling(temperature=0.7), True),  # as the C++ engine and ours: no limit set, so greedy
        (EngineSampling(temperature=0.0, top_p=0.9), True),
        (EngineSampling(top_k=1), True),
        (EngineSampling(top_k=40), False),
        (EngineSampling(top_p=0.9), False),
        (EngineSampling(top_p=1.0, temperature=0.7), False),
    ],
)
def test_the_library_is_greedy_exactly_where_the_contract_is(sampling: EngineSampling, greedy: bool) -> None:
    assert sampling.greedy is greedy
    assert SamplingParams(**sampling_arguments(replace(CALL, sampling=sampling), OBEYS_ALL)).greedy is greedy


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (replace(CALL, bad_words=((1, 2),)), "tensor 'bad_words_list'"),
        (replace(CALL, embedding_bias=(0.5,)), "tensor 'embedding_bias'"),
        (replace(CALL, sequences=2), "tensor 'num_return_sequences' > 1 needs sampling"),
    ],
)
def test_what_cannot_be_passed_on_is_refused_by_name(asked: EngineCall, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        sampling_arguments(asked, OBEYS_ALL)


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (EngineSampling(repetition_penalty=1.1), "repetition_penalty"),
        (EngineSampling(presence_penalty=0.5), "presence_penalty"),
        (EngineSampling(frequency_penalty=0.5), "frequency_penalty"),
        (EngineSampling(top_p=0.9, seed=3), "seed"),
    ],
)
def test_what_a_sampler_would_ignore_is_refused_by_name(sampling: EngineSampling, name: str) -> None:
    asked = replace(CALL, sampling=sampling)
    with pytest.raises(UnsupportedError, match=f"tensor '{name}' is ignored by the TorchSampler"):
        sampling_arguments(asked, IGNORES)
    assert sampling_arguments(asked, OBEYS_ALL)["max_tokens"] == 9
    assert sampling_arguments(replace(CALL, sampling=EngineSampling(seed=3)), IGNORES)["seed"] is None  # greedy


def test_versions_compare_as_they_were_released() -> None:
    order = ["1.1.0", "1.2.0rc3", "1.2.0", "1.2.1", "1.3.0.dev2026", "1.3.0rc2", "1.3.0rc26", "1.3.0", "1.3.1"]
    assert sorted(sorted(order), key=version_of) == order
    assert version_of("1.2.1+cu131") == version_of("1.2.1")
    with pytest.raises(ValueError, match="the version 'new', which cannot be read"):
        version_of("new")


@pytest.mark.parametrize(
    ("version", "asked", "told"),
    [
        ("1.1.0", "", ("TRTLLMSampler", True, True)),
        ("1.2.1", "", ("TRTLLMSampler", True, True)),
        ("1.2.1", "TorchSampler", ("TorchSampler", False, False)),
        ("1.3.0rc25", "", ("TRTLLMSampler", True, True)),
        ("1.3.0rc26", "", ("TorchSampler", True, False)),
        ("1.3.0", "", ("TorchSampler", True, True)),
    ],
)
def test_the_version_chooses_the_sampler_that_obeys(version: str, asked: str, told: tuple[str, bool, bool]) -> None:
    found = sampler_of(version, EngineParameters({"sampler_type": asked}))
    assert (found.sampler_type, found.penalties, found.seeds) == told


@pytest.mark.parametrize(("version", "asked"), [("1.3.0rc26", "TRTLLMSampler"), ("1.2.1", "auto")])
def test_a_sampler_that_the_version_does_not_have_is_refused(version: str, asked: str) -> None:
    with pytest.raises(ValueError, match=f"parameter 'sampler_type' .*{asked}"):
        sampler_of(version, EngineParameters({"sampler_type": asked}))


def test_the_job_of_mpirun_is_forgotten_and_its_configuration_is_not() -> None:
    job = ("OMPI_COMM_WORLD_SIZE", "OMPI_UNIVERSE_SIZE", "PMIX_RANK", "PMIX_SERVER_URI2", "PMI_FD", "ORTE_X")
    environment = dict.fromkeys((*job, "OMPI_MCA_orte_precondition"), "1")
    kept = {"OMPI_MCA_btl": "tcp", "PMIX_MCA_gds": "hash", "OMPI_ALLOW_RUN_AS_ROOT": "1", "PATH": "/bin"}
    environment |= kept
    prepare_process(environment, EngineParameters({"gpu_device_ids": "2,3"}))
    assert environment == {**kept, "CUDA_VISIBLE_DEVICES": "2,3"}
    with pytest.raises(ValueError, match="'gpu_device_ids' must be numbers with commas between them, not '0;1'"):
        prepare_process(environment, EngineParameters({"gpu_device_ids": "0;1"}))
