"""The program. Only here is the environment read."""

from __future__ import annotations

import os
import sys

try:
    from sidecar.cli import (
        build_engine,
        chat,
        dlq,
        fill,
        init,
        items,
        jobs,
        keys,
        main,
        operate,
        plan,
        profile,
        reload,
        results,
        topics,
        verify,
    )
    from sidecar.sim.explain import register_explain
    from sidecar.sim.replay import register_replay
    from sidecar.sim.simulate import register_simulate
except KeyboardInterrupt:  # loading takes a second or two on a busy machine
    sys.exit(130)

COMMANDS = (
    init.register_init,
    build_engine.register_build_engine,
    fill.register_fill,
    main.register_serve,
    items.register_submit,
    items.register_offsets,
    jobs.register_jobs,
    jobs.register_job,
    results.register_results,
    dlq.register_dlq,
    verify.register_verify,
    topics.register_topics,
    keys.register_keys,
    reload.register_reload,
    chat.register_chat,
    operate.register_status,
    operate.register_doctor,
    profile.register_profile,
    plan.register_plan,
    register_simulate,
    register_replay,
    register_explain,
)


def run() -> None:
    """Run the command that the arguments name, and end with its exit code."""
    sys.exit(main.main(sys.argv[1:], os.environ, COMMANDS))


if __name__ == "__main__":
    run()
