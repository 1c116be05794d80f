"""Fixtures for the tests of every room."""

from hypothesis import settings

from tests.fakes.sidecar import sidecar, triton

__all__ = ["sidecar", "triton"]

settings.register_profile("project", deadline=None)  # a busy host is no fault of the code
settings.load_profile("project")
