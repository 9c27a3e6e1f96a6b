"""A training step replayed from a CUDA graph: one launch instead of hundreds of kernels'."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stages.shared.distributed import rank_and_world_size
from stages.shared.sampling import Draws

OFTEN = 100  # times: capturing costs some seconds, a step that is not captured some milliseconds more


def captured(
    step: Callable[[Draws], None],
    state: Sequence[torch.Tensor],
    device: torch.device,
    otherwise: Callable[[Draws], None] | None = None,
) -> Callable[[Draws], None]:
    """`step` replayed from a CUDA graph for the first batch size, and for any other once it has been seen often.

    Until then, and on several devices always, `otherwise` (by default `step` itself) runs the other sizes.
    Warming up and capturing run the step for real, so `state` (every tensor that a step changes) is put back afterwards.
    """
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, Draws]] = {}
    seen: Counter[int] = Counter()
    pool = torch.cuda.graph_pool_handle()  # shared: nothing that one graph leaves in it is read by another

    def worth_capturing(size: int) -> bool:
        if not graphs:
            return True
        # Shards of a tail differ: where another device has this size already, capturing would wait for it for ever.
        return rank_and_world_size()[1] == 1 and seen[size] >= OFTEN

    def replay(draws: Draws) -> None:
        size = len(draws.index)
        if size not in graphs:
            seen[size] += 1
            if not worth_capturing(size):
                (otherwise or step)(draws)
                return
            graphs[size] = _capture(step, draws, state, pool, device)
        graph, static = graphs[size]
        for target, part in zip(static.tensors(), draws.tensors(), strict=True):
            target.copy_(part)
        graph.replay()

    return replay


def _capture(
    step: Callable[[Draws], None], draws: Draws, state: Sequence[torch.Tensor], pool: Any, device: torch.device
) -> tuple[torch.cuda.CUDAGraph, Draws]:
    """The graph and the tensors that it reads. Raises ValueError with the cause where CUDA cannot capture the step."""
    static = draws.each(torch.clone)
    # Detached: a clone that autograd recorded would keep its parameter's AccumulateGrad node alive, with the stream that
    # the node was made on, and capture refuses to depend on that.
    before = [tensor.detach().clone() for tensor in state]
    try:
        with fastest_convolutions():
            graph = _warm_up_and_record(step, static, pool, device)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"capturing the training step in a CUDA graph failed: {error}. If that is the network's own doing "
            "(it waits for the device, or copies from the host), set runtime.step to eager"
        ) from error
    with torch.no_grad():
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
    return graph, static


def _warm_up_and_record(
    step: Callable[[Draws], None], static: Draws, pool: Any, device: torch.device
) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(static)
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: NCCL's watchdog may ask for events meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        step(static)
    return graph


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape and take the fastest; a captured graph keeps what it took."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
