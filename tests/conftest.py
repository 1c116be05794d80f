"""Fixtures for the tests of every room."""

from tests.fakes.sidecar import sidecar, triton

__all__ = ["sidecar", "triton"]
