"""Fixtures for the tests of every room."""

import pytest
from hypothesis import settings

from tests.fakes.sidecar import sidecar, triton

__all__ = ["sidecar", "triton"]

settings.register_profile("project", deadline=None)  # a busy host is no fault of the code
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow tests first: where processes share the tests, none of them is left alone with a long one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
