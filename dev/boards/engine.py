"""Engine and GPU: what TensorRT-LLM and the card do, whether the model of them can be trusted, and the relay."""

from __future__ import annotations

from typing import Any

from dev.boards.board import board
from dev.boards.panel import Panel, high_is_bad, lines, stat
from dev.boards.query import highest, lowest, of, percentile, rate, together, total

RPC = "rpc_client_call_duration_seconds"


def engine() -> dict[str, Any]:
    """Return the board."""
    rows = {
        "Verdict": _verdict(),
        "Engine": _batch() + _chunks(),
        "The model of its iterations": _model(),
        "GPU": _gpu(),
        "The relay": _relay(),
    }
    text = "What the engine and its GPU do, how well the sidecar predicts it, and what the sidecar itself takes."
    return board(
        "engine",
        "Engine and GPU",
        text,
        rows,
        variables=(
            "model",
            "lane",
        ),
    )


def _verdict() -> list[Panel]:
    return [
        stat(
            "Engine",
            lowest("sidecar_engine_ready"),
            words={"0": ("down", "red"), "1": ("ready", "green")},
            shows="Whether every engine takes requests.",
            do="docs/runbooks/EngineDown.md.",
        ),
        stat(
            "Silence",
            f"{highest('sidecar_engine_silence_seconds')} or vector(0)",
            "s",
            steps=high_is_bad(5, 30),
            shows="Longest time without a token although something is in flight.",
            do="Above the time of a long prompt the engine hangs: docs/runbooks/EngineHung.md.",
        ),
        stat(
            "Foreign slots",
            f"{total('sidecar_slots_foreign')} or vector(0)",
            steps=high_is_bad(1, 4),
            shows="Slots of the engine that somebody else uses.",
            do="Send all callers through the sidecar: what it does not see it cannot schedule around.",
        ),
        stat(
            "Latency model",
            lowest("sidecar_latency_model_trusted"),
            words={"0": ("not trusted", "orange"), "1": ("trusted", "green")},
            shows="Whether the predictions are close enough to decide by.",
            do="Below: its error against the bound. It learns anew by itself after a change of the engine.",
        ),
        stat(
            "Loop lag",
            highest("sidecar_event_loop_lag_seconds"),
            "s",
            steps=high_is_bad(0.05, 0.5),
            shows="Longest delay of the sidecar's event loop since the last scrape.",
            do="It adds to every token. Give the sidecar a core of its own.",
        ),
        stat(
            "Spans dropped",
            "sum({})".format(of("sidecar_dropped_spans_total")),
            steps=high_is_bad(1, 1000),
            shows="Spans that never reached the collector, since the start.",
            do="The collector is away or too slow. Requests do not wait for it.",
        ),
    ]


def _batch() -> list[Panel]:
    signals = {
        name: highest(f"sidecar_guard_{name}", signal="kv_cache_utilization") for name in ("signal", "threshold")
    }
    return [
        lines(
            "Requests in the engine",
            {"{{request_type}}": together("sum", of("nv_trt_llm_request_metrics"), "request_type")},
            shows="Triton's own count: active, scheduled, waiting, and the most that fit.",
            do="Waiting ones are a queue behind the sidecar's: engines[].slots is larger than max_batch_size.",
        ),
        lines(
            "KV cache",
            {
                "by the sidecar": signals["signal"],
                "held back from here": signals["threshold"],
                "by the engine": together(
                    "max", of("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="fraction")
                ),
            },
            "percentunit",
            dashed=("held back from here",),
            most=1.0,
            shows="Share of the KV cache in use, as the sidecar reckons and as the engine says.",
            do="If they differ much, others use the engine, or the settings name another cache than it has.",
        ),
        lines(
            "Inflight batch",
            {
                "{{inflight_batcher_specific_metric}}": together(
                    "max", of("nv_trt_llm_inflight_batcher_metrics"), "inflight_batcher_specific_metric"
                )
            },
            shows="What an iteration of the engine holds.",
            do="Context tokens are prompts: they make the iteration longer for everybody in it.",
        ),
    ]


def _chunks() -> list[Panel]:
    return [
        lines(
            "Dispatches",
            {"{{kind}}": rate("sidecar_dispatches_total", "kind", lane="~$lane")},
            "ops",
            stacked=True,
            shows="Requests that got their slots, by why they got them.",
            do="Many resumes mean short chunks: see the tokens computed twice.",
        ),
        lines(
            "Tokens computed twice",
            {
                "{{cause}}": rate("sidecar_redone_tokens_total", "cause"),
                "sent again": rate("sidecar_resumed_tokens_total"),
            },
            "tokens/s",
            shows="Context that had left the KV cache, output that was thrown away, and all that was sent again.",
            do="Recomputed near 'sent again': no block reuse. Check enableBlockReuse and free_gpu_memory_fraction.",
        ),
        lines(
            "Chunks",
            {
                "length, as a multiple of slice_tokens": together("avg", of("sidecar_slice_factor")),
                "found in the KV cache": together("avg", of("sidecar_kv_reuse_ratio")),
            },
            "none",
            shows="How long chunks of items are, and which share of a resumed item's tokens the engine still had.",
            do="0 chunks and items run in one piece: the engine forgets too much between two of them.",
        ),
    ]


def _model() -> list[Panel]:
    return [
        lines(
            "Error of the model",
            {
                "error": highest("sidecar_latency_model_error_ratio"),
                "trusted below": highest("sidecar_guard_threshold", signal="model_error"),
            },
            "percentunit",
            dashed=("trusted below",),
            size=(8, 8),
            shows="Relative error of its last predictions.",
            do="Above the line it decides nothing. A foreign process on the card, or changing clocks, are the "
            "usual causes.",
        ),
        lines(
            "What it has learnt",
            {"{{term}}": together("avg", of("sidecar_latency_model_seconds"), "term")},
            "s",
            size=(8, 8),
            shows="The terms of an iteration's time.",
            do="A step without a change of the engine: power or thermal limits of the card.",
        ),
        lines(
            "Foreign load",
            {"slots of others": total("sidecar_slots_foreign"), "slots of ours": total("sidecar_slots_in_use")},
            stacked=True,
            size=(8, 8),
            shows="Slots in use by this sidecar and by others, where the engine's gauges tell.",
            do="Others should be 0.",
        ),
    ]


def _gpu() -> list[Panel]:
    active = {"SM": "SM_ACTIVE", "tensor cores": "PIPE_TENSOR_ACTIVE", "memory": "DRAM_ACTIVE"}
    return [
        lines(
            "Activity",
            {
                f"{name} {{{{gpu}}}}": together("avg", of(f"DCGM_FI_PROF_{each}"), "gpu")
                for name, each in active.items()
            },
            "percentunit",
            most=1.0,
            size=(8, 8),
            shows="Share of the cycles in which streaming multiprocessors, tensor cores and memory work (DCGM).",
            do="SM high is not enough. Decoding is bound by memory, prompts by tensor cores: what is low is "
            "left to harvest.",
        ),
        lines(
            "Power",
            {"{{gpu}}": together("sum", of("DCGM_FI_DEV_POWER_USAGE"), "gpu")},
            "watt",
            stacked=True,
            size=(8, 8),
            shows="Power draw by card.",
            do="At the card's limit clocks fall, and every iteration takes longer.",
        ),
        lines(
            "Memory",
            {"{{gpu}}": "{} * 1024 * 1024".format(together("sum", of("DCGM_FI_DEV_FB_USED"), "gpu"))}
            | {"engine {{memory_type}}": together("max", of("nv_trt_llm_runtime_memory_metrics"), "memory_type")},
            "bytes",
            size=(8, 8),
            shows="Memory of the card in use, and the engine's own account.",
            do="TensorRT-LLM takes its KV cache at the start, so that this hardly moves.",
        ),
    ]


def _relay() -> list[Panel]:
    return [
        lines(
            "A dispatch at the engine",
            {f"p{share}": percentile(share / 100, RPC) for share in (50, 95, 99)},
            "s",
            shows="Duration of the calls to the engine, both lanes.",
            do="Chunks of items are short ones.",
        ),
        lines(
            "CPU of the sidecar",
            {"{{instance}}": together("sum", f"rate({of('process_cpu_seconds_total')}[$__rate_interval])", "instance")},
            "percentunit",
            shows="Share of one core.",
            do="Near 100 % tokens wait for the relay: one sidecar serves one engine; split the load.",
        ),
        lines(
            "Loop lag",
            {"{{instance}}": highest("sidecar_event_loop_lag_seconds", "instance")},
            "s",
            shows="Longest delay of the event loop between two scrapes.",
            do="Spikes with the CPU at rest come from other processes on the host.",
        ),
        lines(
            "Memory of the sidecar",
            {"{{instance}}": together("sum", of("process_resident_memory_bytes"), "instance")},
            "bytes",
            shows="Resident memory.",
            do="It should level off. If it does not, report it with the recorded decisions.",
        ),
        lines(
            "Contained faults",
            {"faults {{where}}": f"{rate('sidecar_contained_faults_total', 'where')} or vector(0)"}
            | {"spans": rate("sidecar_dropped_spans_total")},
            "ops",
            shows="Exceptions that were contained to one request, and spans that were dropped.",
            do="0 is normal. The log names the place, once a minute.",
        ),
        lines(
            "RPCs of callers",
            {"{{rpc_status_code}}": rate("rpc_server_call_duration_seconds_count", "rpc_status_code")},
            "reqps",
            stacked=True,
            shows="Calls by their gRPC status.",
            do="docs/wire.md has the meaning of each status.",
        ),
    ]
