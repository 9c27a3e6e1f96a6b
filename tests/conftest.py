"""The order of the tests."""

import pytest

LONGEST = ("test_pipeline.py", "test_sweep.py", "test_pipeline_flow.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two workers end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
