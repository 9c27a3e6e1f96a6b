"""The order of the tests, who runs them, and what many of them share."""

from collections.abc import Iterator
from typing import Any

import pytest

LONGEST = (
    "test_pipeline.py", "test_sweep.py", "test_pipeline_flow.py", "test_promote.py", "test_kills.py", "test_export.py",
    "test_real_input.py", "test_search.py", "test_acceptance.py", "test_faults.py", "test_web.py",
)  # fmt: skip
TOGETHER = {  # files that share what is dear to make: one worker runs them all
    "a Prefect server": ("test_pipeline_flow.py", "test_sweep.py", "test_promote.py"),
    "an exported project": ("test_export.py", "test_parity.py", "test_predict.py", "test_monitor.py"),
    "forks of the stages": ("test_kills.py", "test_faults.py"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that two workers end together."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one worker, as `--dist loadfile` has it, and so do those of TOGETHER."""
    from xdist.scheduler import LoadFileScheduling

    group = {name: what for what, names in TOGETHER.items() for name in names}

    class ByGroup(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return group.get(file.rpartition("/")[2], file)

    return ByGroup(config, log)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Any]:
    """Forks of the stages. Only what the short tests need is imported beforehand; the long ones' stages import the rest."""
    from tests.nursery import Nursery  # here, as it is Linux's alone

    with Nursery("download", "pretrain", "preprocess", "train") as nursery:
        yield nursery


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for all tests of this worker; yields its address."""
    from flows.settings import prefect_environment  # here, so that the tests of the stages run without Prefect

    with pytest.MonkeyPatch.context() as patch:
        for name, value in prefect_environment(tmp_path_factory.mktemp("server")).items():
            patch.setenv(name, value)
        from prefect.settings import PREFECT_API_URL
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=180):
            yield str(PREFECT_API_URL.value())
