"""Stand-ins for torch.cuda's graphs and streams, with which the way on CUDA runs on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.shared.sampling import Draws


class FakeGraphs:
    """What runs while a graph is captured runs again, on the CPU, when it is replayed; `calls` is what was asked for, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[str] = []
        self.recording: list[tuple[Callable[[Draws], None], Draws]] | None = None
        for name in ("CUDAGraph", "graph", "graph_pool_handle", "Stream", "Event", "current_stream", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    @property
    def captured(self) -> int:
        return self.calls.count("capture")

    def note(self, step: Callable[[Draws], None]) -> Callable[[Draws], None]:
        """`step`, noted whenever it runs, and as part of a graph when it runs in a capture."""

        def noted(draws: Draws) -> None:
            self.calls.append(f"step {len(draws.index)}")
            if self.recording is not None:
                self.recording.append((step, draws))
            step(draws)

        return noted

    def CUDAGraph(self) -> Any:  # noqa: N802 (torch's name)
        ran: list[tuple[Callable[[Draws], None], Draws]] = []

        def replay() -> None:
            self.calls.append("replay")
            for step, draws in ran:
                step(draws)

        return SimpleNamespace(ran=ran, replay=replay)

    @contextmanager
    def graph(self, graph: Any, pool: Any, capture_error_mode: str) -> Iterator[None]:
        self.calls.append("capture")
        self.recording = graph.ran
        yield
        self.recording = None

    def graph_pool_handle(self) -> None:
        return None

    def Stream(self, device: torch.device) -> Any:  # noqa: N802
        return self._stream("side")

    def current_stream(self, device: torch.device) -> Any:
        return self._stream("main")

    def Event(self) -> Any:  # noqa: N802
        return SimpleNamespace(
            record=lambda stream: self.calls.append(f"record on {stream.name}"),
            synchronize=lambda: self.calls.append("host waits"),
        )

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.calls.append(f"enter {stream.name}")
        yield
        self.calls.append(f"leave {stream.name}")

    def _stream(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.calls.append(f"{name} waits for {other.name}"),
            wait_event=lambda event: self.calls.append(f"{name} waits"),
        )
