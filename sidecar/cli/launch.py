"""The command that starts Triton for an engine: as many processes as it has ranks, because MPI knows each as one."""

from __future__ import annotations

from sidecar.cli.serving_profile import ServingProfile

_ALONE = """\
#!/usr/bin/env bash
# One tritonserver: tensorrt_llm.LLM starts the processes of its other GPUs by itself. It is process 1 and gets SIGTERM.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
export PYTHONPATH="$here/python${PYTHONPATH:+:$PYTHONPATH}"
exec """
_RANKS = """\
#!/usr/bin/env bash
# One tritonserver for each rank: TensorRT-LLM's leader mode wants as many MPI processes as the engine has ranks. Rank 0
# serves; the others load the engine alone and listen nowhere. mpirun is process 1: if one rank dies, all end, and the
# container starts anew. It passes SIGTERM on and may kill the ranks a second later, so whoever has requests in here
# drains before this is stopped.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
exec mpirun --allow-run-as-root"""
_QUIET = (
    "--allow-http=false",
    "--allow-grpc=false",
    "--allow-metrics=false",
    "--log-info=false",
    "--log-warning=false",
)


def launch_script(profile: ServingProfile, grpc_address: str) -> str:
    """Return run.sh, which lies beside the folders text/ and engine/ that `sidecar fill` writes."""
    host, _, port = grpc_address.rpartition(":")
    served = (
        '--model-repository="$here/text"',
        '--model-repository="$here/engine"',
        f"--grpc-address={host}",
        f"--grpc-port={port}",
    )
    if profile.backend == "llmapi":
        return _ALONE + _server(0, served) + "\n"
    waiting = (
        '--model-repository="$here/engine"',
        "--model-control-mode=explicit",
        "--load-model=tensorrt_llm",
        *_QUIET,
    )
    ranks = [_server(rank, waiting if rank else served) for rank in range(profile.tensor_parallel_size)]
    return _RANKS + " :".join(f" \\\n  -n 1 {each}" for each in ranks) + "\n"


def _server(rank: int, flags: tuple[str, ...]) -> str:
    """The shared memory of each rank has a name of its own: on one host they would find each other's."""
    common = ("--disable-auto-complete-config", f"--backend-config=python,shm-region-prefix-name=rank{rank}_")
    return " \\\n       ".join(("tritonserver --id=" + f"rank{rank}", *flags, *common))
