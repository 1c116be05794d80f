"""What the client asks about the server and its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from tests.integration.compare.programs.seen import fault


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except InferenceServerException as failure:
        return fault(failure)


def about(target: str, word: str) -> Any:
    """Health, metadata, configuration, repository, settings; the wrong questions among them."""
    del word
    with grpc.InferenceServerClient(target) as client:
        return [
            _asked(ask)
            for ask in (
                client.is_server_live,
                client.is_server_ready,
                lambda: client.is_model_ready("ensemble"),
                lambda: client.is_model_ready("tensorrt_llm", "1"),
                lambda: client.is_model_ready("tensorrt_llm", "9"),
                lambda: client.is_model_ready("no-such"),
                lambda: client.get_server_metadata(as_json=True),
                lambda: client.get_model_metadata("ensemble", as_json=True),
                lambda: client.get_model_metadata("no-such", as_json=True),
                lambda: client.get_model_config("tensorrt_llm", as_json=True),
                lambda: client.get_model_config("no-such", as_json=True),
                lambda: client.get_model_repository_index(as_json=True),
                lambda: client.load_model("preprocessing"),
                lambda: client.unload_model("preprocessing"),
                lambda: client.get_cuda_shared_memory_status(as_json=True),
                lambda: client.unregister_system_shared_memory("no-such"),
                lambda: client.get_trace_settings(as_json=True),
                lambda: client.get_trace_settings("no-such", as_json=True),
                lambda: client.get_log_settings(as_json=True),
                lambda: [each.name for each in client.get_inference_statistics().model_stats],
                lambda: client.get_inference_statistics("no-such", as_json=True),
            )
        ]


def guarded(target: str, word: str) -> Any:
    """A server with restricted protocols: without and with its key."""
    del word
    key = {"triton-grpc-protocol-admin-key": "open-sesame"}
    with grpc.InferenceServerClient(target) as client:
        return [
            _asked(lambda: client.get_model_repository_index(as_json=True)),
            _asked(lambda: client.get_model_repository_index(as_json=True, headers=key)),
            _asked(lambda: client.get_model_config("ensemble", as_json=True)),
            _asked(lambda: client.get_model_config("ensemble", as_json=True, headers=key)),
            _asked(lambda: client.unload_model("no-such")),
            _asked(lambda: client.unload_model("no-such", headers=key)),
            _asked(lambda: client.is_server_ready()),
        ]


PROGRAMS = {"about the server": about, "a guarded server": guarded}
