"""NVIDIA's own programs in our words: end_to_end_grpc_client, inflight_batcher_llm_client, perf_analyzer.

What each sends (tensors, datatypes, order of calls) and how it reads the answers is theirs; nothing else is.
"""

from __future__ import annotations

import queue
import time
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.integration.compare.programs.seen import RELEASE, TEXT, by_id, either, fault, ids_inputs, long_inputs, tensor

ID = f"12345-{RELEASE}"  # theirs is 12345; another for each release, since both run at once


def _of(name: str, array: Any) -> Any:
    made = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def end_to_end(target: str, *, streaming: bool, sequences: int | None = None, figures: bool = False) -> Any:
    """A prompt to the text model; the text is put together as that client does it: `as_numpy("text_output")[0]`."""
    inputs = [
        _of("text_input", np.array([[TEXT]]).astype(object)),
        _of("max_tokens", np.array([[12]], dtype=np.int32)),
        _of("stream", np.array([[streaming]], dtype=bool)),
        _of("beam_width", np.array([[1]], dtype=np.int32)),
        _of("temperature", np.array([[1.0]], dtype=np.float32)),
        _of("bad_words", np.array([[""]], dtype=object)),
        _of("stop_words", np.array([[""]], dtype=object)),
        _of("exclude_input_in_output", np.array([[True]], dtype=bool)),
    ]
    outputs = [grpc.InferRequestedOutput("text_output")]
    if sequences is not None:
        more = [("num_return_sequences", sequences, np.int32), ("top_k", 4, np.int32), ("seed", 5, np.uint64)]
        inputs += [_of(name, np.array([[value]], dtype=dtype)) for name, value, dtype in more]
        outputs.append(grpc.InferRequestedOutput("sequence_index"))
    if figures:
        inputs.append(_of("return_perf_metrics", np.array([[True]], dtype=bool)))
        outputs += [grpc.InferRequestedOutput(name) for name in ("kv_cache_alloc_new_blocks", "arrival_time_ns")]
    answers: queue.Queue[Any] = queue.Queue()
    texts, figures_seen = [""] * (sequences or 1), []
    with grpc.InferenceServerClient(target) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer("ensemble", inputs, outputs=outputs, request_id="1")
        client.stop_stream()
    while not answers.empty():
        found = answers.get()
        if isinstance(found, InferenceServerException):
            return fault(found)
        index = found.as_numpy("sequence_index")
        at = 0 if index is None else int(index[0][0])
        new = found.as_numpy("text_output")[0].decode("utf-8")
        texts[at] = texts[at] + new if streaming else new
        arrival = found.as_numpy("arrival_time_ns")
        figures_seen.append(None if arrival is None else int(arrival[0][0]) >= 0)
    return [texts, figures_seen]


def batcher_streaming(target: str, word: str) -> Any:
    """Ids, streamed, then stopped by the same id on the same stream as that client does it."""
    del word
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(target) as client:
        client.start_stream(lambda result, error: answers.put(either(result, error)))
        client.async_stream_infer("tensorrt_llm", long_inputs(), request_id=ID)
        first = answers.get(timeout=15)
        client.async_stream_infer("tensorrt_llm", stop_inputs("INT32"), request_id=ID, parameters={"Streaming": True})
        client.stop_stream()
    empty = sum(not answers.get().get("outputs") for _ in range(answers.qsize()))
    return {"first": first, "answers without output": empty}


def batcher_older(target: str, word: str) -> Any:
    """The same with the UINT32 that an older release of that client sends: refused."""
    del word
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(target) as client:
        client.start_stream(lambda result, error: answers.put(either(result, error)))
        client.async_stream_infer("tensorrt_llm", stop_inputs("UINT32"), request_id=ID)
        client.stop_stream()
    return [answers.get() for _ in range(answers.qsize())]


def stop_inputs(datatype: str) -> list[Any]:
    """What that client sends to stop a request."""
    return [
        tensor("input_ids", "INT32", [0]),
        tensor("input_lengths", "INT32", [0]),
        tensor("request_output_len", datatype, [0]),
        tensor("stop", "BOOL", [True]),
    ]


def analyzer_unary(target: str, word: str) -> Any:
    """perf_analyzer on a model that is not decoupled: metadata, configuration, statistics, requests, statistics."""
    del word
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(target) as client:
        extensions = client.get_server_metadata().extensions
        metadata = client.get_model_metadata("preprocessing", "", as_json=True)
        config = client.get_model_config("preprocessing", "").config
        before = client.get_inference_statistics("preprocessing", "").model_stats[0]
        inputs = [tensor("QUERY", "BYTES", [b"hello"]), tensor("REQUEST_OUTPUT_LEN", "INT32", [5])]
        for number in range(8):  # without an id of its own: what perf_analyzer sends when it is not asked for ids
            client.async_infer(
                "preprocessing",
                inputs,
                callback=lambda result, error: answers.put(either(result, error)),
                request_id=str(number) if number % 2 else "",
                client_timeout=9.0,
            )
        seen = by_id([answers.get(timeout=10) for _ in range(8)])
        after = _counted(client, "preprocessing", before, 8)
    return {
        "extensions": list(extensions),
        "metadata": metadata,
        "decoupled": config.model_transaction_policy.decoupled,
        "batch": config.max_batch_size,
        "seen": seen,
        "at least so many more": _more(before, after) >= 8,
    }


def _more(before: Any, after: Any) -> int:
    return int(after.inference_stats.success.count - before.inference_stats.success.count)


def _counted(client: Any, model: str, before: Any, requests: int) -> Any:
    """The statistics once they count these requests, which Triton does after it has answered them."""
    ends_s = time.monotonic() + 5
    while True:
        after = client.get_inference_statistics(model, "").model_stats[0]
        if _more(before, after) >= requests or time.monotonic() > ends_s:
            return after


def analyzer_streaming(target: str, word: str) -> Any:
    """perf_analyzer --streaming on the engine model: empty finals asked for, each answer's final flag read."""
    del word
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(target) as client:
        config = client.get_model_config("tensorrt_llm", "").config
        before = client.get_inference_statistics("tensorrt_llm", "").model_stats[0]
        client.start_stream(lambda result, error: answers.put(either(result, error)))
        for number in range(4):
            client.async_stream_infer(
                "tensorrt_llm", ids_inputs(), request_id=str(number), enable_empty_final_response=True
            )
        client.stop_stream()
        after = _counted(client, "tensorrt_llm", before, 4)
    seen = by_id([answers.get() for _ in range(answers.qsize())])
    return {
        "decoupled": config.model_transaction_policy.decoupled,
        "seen": seen,
        "version": [before.version, after.version],
        "at least so many more": _more(before, after) >= 4,
    }


PROGRAMS = {
    "end to end, streamed": lambda target, _: end_to_end(target, streaming=True),
    "end to end, whole": lambda target, _: end_to_end(target, streaming=False),
    "end to end, two sequences": lambda target, _: end_to_end(target, streaming=False, sequences=2),
    "end to end, figures": lambda target, _: end_to_end(target, streaming=False, figures=True),
    "batcher, stopped": batcher_streaming,
    "batcher, older stop": batcher_older,
    "perf_analyzer": analyzer_unary,
    "perf_analyzer, streaming": analyzer_streaming,
}
