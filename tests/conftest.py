"""The order of the tests, and a Prefect server for those that need one."""

from collections.abc import Iterator

import pytest

LONGEST = (
    "test_pipeline.py", "test_sweep.py", "test_pipeline_flow.py", "test_promote.py", "test_kills.py", "test_export.py",
    "test_real_input.py", "test_search.py", "test_acceptance.py", "test_faults.py", "test_web.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two workers end together."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for all tests of this file; yields its address."""
    from flows.settings import prefect_environment  # here, so that the tests of the stages run without Prefect

    with pytest.MonkeyPatch.context() as patch:
        for name, value in prefect_environment(tmp_path_factory.mktemp("server")).items():
            patch.setenv(name, value)
        from prefect.settings import PREFECT_API_URL
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=180):
            yield str(PREFECT_API_URL.value())
