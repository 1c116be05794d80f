"""Same twice: each scenario is played against Triton itself and through the sidecar, and the answers are compared.

    scenario.py     what a scenario is: its steps, what may differ and why
    messages.py     KServe messages as bytes
    scenarios/      the table, one small file per subject
    player.py       plays steps with grpc.aio; go/ does the same with grpc-go
    programs.py     programs on top of the tritonclient package, run under two versions of it
    reading.py      what was received, decoded, without what differs between any two runs
    comparison.py   the parts in which two runs differ
    deployment.py   the servers: one pair for most scenarios, one with restricted protocols and model control
    runner.py       plays the whole table
    document.py     docs/wire.md, made from the table

`python -m tests.integration.compare` plays the table and prints what differs; `--write` writes docs/wire.md.
"""
