"""The program. Only here is the environment read."""

from __future__ import annotations

import os
import sys

try:
    from sidecar import cli, kafka_commands, operate
    from sidecar.lab.replay import register_replay
    from sidecar.lab.simulate import register_simulate
except KeyboardInterrupt:  # loading takes a second or two on a busy machine
    sys.exit(130)

COMMANDS = (
    cli.register_serve,
    kafka_commands.register_submit,
    kafka_commands.register_offsets,
    operate.register_status,
    operate.register_doctor,
    register_simulate,
    register_replay,
)


def main() -> None:
    """Run the command that the arguments name, and end with its exit code."""
    sys.exit(cli.main(sys.argv[1:], os.environ, COMMANDS))


if __name__ == "__main__":
    main()
