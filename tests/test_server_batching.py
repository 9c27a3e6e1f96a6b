"""consumers/server/batching.py without a server: which images run together, and which batches at once."""

import asyncio
import threading
from collections.abc import Coroutine

import numpy as np
import pytest

from consumers.server.batching import Batcher, QueueFullError


class Model:
    """Holds every batch until `go`, and notes it. An image's answer is its first value; 13 breaks the batch."""

    def __init__(self) -> None:
        self.runs: list[int] = []  # images of each batch
        self.go = threading.Semaphore(0)

    def compute(self, _: object, images: list[np.ndarray]) -> list[int]:
        self.runs.append(len(images))
        assert self.go.acquire(timeout=30)
        if any(image.flat[0] == 13 for image in images):
            raise RuntimeError("unlucky")
        return [int(image.flat[0]) for image in images]


def images(*values: int, side: int = 2) -> list[np.ndarray]:
    return [np.full((side, side, 3), value, np.uint8) for value in values]


def batcher(model: Model, at_once: int = 2, num_expected: int = 0, budget: float = 30) -> Batcher:
    return Batcher(
        model.compute,
        max_batch=4,
        at_once=at_once,
        max_queue=12,
        budget=budget,
        num_expected=lambda: num_expected,
        observe=lambda *_: None,
    )


async def until(num_runs: int, model: Model) -> None:
    while len(model.runs) < num_runs:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)  # one that ought not to start had time to


def play(batches: Batcher, scene: Coroutine[None, None, None]) -> None:
    async def run() -> None:
        running = asyncio.create_task(batches.run())
        await asyncio.wait_for(scene, 30)
        batches.close()
        await asyncio.wait_for(running, 30)

    asyncio.run(run())


def test_images_that_come_while_a_batch_runs_wait_for_it_and_run_together() -> None:
    model = Model()
    batches = batcher(model)

    async def scene() -> None:
        first = asyncio.create_task(batches.submit(None, images(1)))
        await until(1, model)
        others = [asyncio.create_task(batches.submit(None, images(n))) for n in (2, 3)]
        await until(1, model)
        assert model.runs == [1]
        model.go.release(2)
        assert await asyncio.gather(first, *others) == [[1], [2], [3]]

    play(batches, scene())
    assert model.runs == [1, 2]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_only_so_many_full_batches_run_beside_each_other(at_once: int) -> None:
    model = Model()
    batches = batcher(model, at_once)

    async def scene() -> None:
        asked = [asyncio.create_task(batches.submit(None, images(*range(n, n + 4)))) for n in (0, 4, 8)]
        await until(at_once, model)
        assert model.runs == [4] * at_once
        model.go.release(3)
        assert [await answer for answer in asked] == [list(range(n, n + 4)) for n in (0, 4, 8)]

    play(batches, scene())
    assert model.runs == [4, 4, 4]


def test_beside_a_long_batch_none_runs() -> None:
    model = Model()
    batches = batcher(model)
    batches.seconds = 1.0  # that the last one took

    async def scene() -> None:
        asked = [asyncio.create_task(batches.submit(None, images(*range(n, n + 4)))) for n in (0, 4)]
        await until(1, model)
        assert model.runs == [4]
        model.go.release(2)
        assert [await answer for answer in asked] == [[0, 1, 2, 3], [4, 5, 6, 7]]

    play(batches, scene())


def test_a_broken_batch_is_told_and_frees_its_place() -> None:
    model = Model()
    batches = batcher(model)

    async def scene() -> None:
        model.go.release(3)
        for values in ((13,), (13, 1, 2, 3)):
            with pytest.raises(RuntimeError, match="unlucky"):
                await batches.submit(None, images(*values))
        assert await batches.submit(None, images(5)) == [5]

    play(batches, scene())
    assert model.runs == [1, 4, 1]


def test_images_of_another_shape_wait_for_a_batch_of_their_own() -> None:
    model = Model()
    batches = batcher(model, at_once=1, num_expected=3, budget=0.1)

    async def scene() -> None:
        model.go.release(2)
        asked = [
            batches.submit(None, images(1)),
            batches.submit(None, images(2, side=3)),
            batches.submit(None, images(3)),
        ]
        assert await asyncio.gather(*asked) == [[1], [2], [3]]

    play(batches, scene())
    assert model.runs == [2, 1]


def test_images_for_another_model_wait_for_a_batch_of_their_own() -> None:
    model = Model()
    batches = batcher(model, at_once=1, num_expected=3, budget=0.1)

    async def scene() -> None:
        model.go.release(2)
        asked = [batches.submit(name, images(value)) for value, name in enumerate(("old", "new", "old"))]
        assert await asyncio.gather(*asked) == [[0], [1], [2]]

    play(batches, scene())
    assert model.runs == [2, 1]


def test_who_has_gone_is_not_run_and_a_full_queue_refuses() -> None:
    model = Model()
    batches = batcher(model, at_once=1)

    async def scene() -> None:
        first = asyncio.create_task(batches.submit(None, images(1)))
        await until(1, model)
        gone = asyncio.create_task(batches.submit(None, images(*range(12))))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batches.submit(None, images(1))
        gone.cancel()
        model.go.release(1)
        assert await first == [1]

    play(batches, scene())
    assert model.runs == [1]
