"""Tests of what `scripts/gpu_check` runs."""
