"""Benchmarks: each prints figures and ratios of one run."""
