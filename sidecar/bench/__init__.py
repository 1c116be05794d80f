"""Benchmarks: each module measures one part, prints ratios from one run, and writes them with `--json`."""
