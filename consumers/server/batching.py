"""Dynamic batching: images of many requests through the model together, within a budget of waiting and a bounded queue."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

# Seconds. Beside a longer batch a second one wins no more than the moment between the two, and they take the caches from each other.
BRIEF = 0.05


class QueueFullError(Exception):
    """There is no room for these images now; they may come again."""


@dataclass
class Item:
    model: Any  # that is to answer
    image: np.ndarray  # (height, width, channels) uint8
    answer: asyncio.Future[Any]
    arrived: float  # the loop's time

    def is_like(self, other: "Item") -> bool:
        return self.model is other.model and self.image.shape == other.image.shape


class Batcher:
    """Answers images in the order of their arrival, those of one shape and for one model together.

    compute: from a model and images of one shape to as many answers; runs in a thread.
    at_once: brief batches that may run, so that the model need not wait for answers to be sent and requests to be read. Beside
        another only a full one starts: images that come one by one are run together.
    budget: seconds that the first image of a batch waits for more, while `num_expected()` says that more are on their way.
    observe: told the size of each batch and the seconds it took.
    """

    def __init__(
        self,
        compute: Callable[[Any, list[np.ndarray]], list[Any]],
        *,
        max_batch: int,
        at_once: int,
        max_queue: int,
        budget: float,
        num_expected: Callable[[], int],
        observe: Callable[[int, float], None],
    ) -> None:
        self.compute, self.observe, self.num_expected = compute, observe, num_expected
        self.max_batch, self.at_once, self.max_queue, self.budget = max_batch, at_once, max_queue, budget
        self.queue: deque[Item] = deque()
        self.running = 0  # batches
        self.seconds = 0.0  # that the last one took
        self.change = asyncio.Event()  # of the queue, or of what is running
        self.closing = False

    async def submit(self, model: Any, images: list[np.ndarray]) -> list[Any]:
        """The answers, in order. Raises QueueFullError at once where there is no room for all."""
        if self.closing or len(self.queue) + len(images) > self.max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        items = [Item(model, image, loop.create_future(), loop.time()) for image in images]
        self.queue.extend(items)
        self.change.set()
        return await asyncio.gather(*(item.answer for item in items))

    async def run(self) -> None:
        """Answer until `close`, and then what is left."""
        with ThreadPoolExecutor(self.at_once, "model") as threads:
            async with asyncio.TaskGroup() as batches:
                while not (self.closing and not self.queue):
                    if self._may_start():
                        await self._wait_for_more()
                        if items := self._take():
                            self.running += 1
                            batches.create_task(self._answer(items, threads))
                    else:
                        await self._wait_for_change()

    def close(self) -> None:
        self.closing = True
        self.change.set()

    def _may_start(self) -> bool:
        if self.running:
            return self.running < self.at_once and self.seconds < BRIEF and len(self.queue) >= self.max_batch
        return bool(self.queue)

    async def _wait_for_change(self) -> None:
        self.change.clear()
        await self.change.wait()

    async def _wait_for_more(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self.queue[0].arrived + self.budget):
                while len(self.queue) < min(self.max_batch, self.num_expected()):
                    await self._wait_for_change()

    def _take(self) -> list[Item]:
        """The first image and those like it; who has gone meanwhile is left out."""
        taken: list[Item] = []
        others: deque[Item] = deque()
        while self.queue and len(taken) < self.max_batch:
            item = self.queue.popleft()
            if item.answer.done():
                continue
            (taken if not taken or item.is_like(taken[0]) else others).append(item)
        self.queue.extendleft(reversed(others))
        return taken

    async def _answer(self, items: list[Item], threads: ThreadPoolExecutor) -> None:
        started = time.perf_counter()
        images = [item.image for item in items]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(threads, self.compute, items[0].model, images)
        except Exception as error:  # the requests are told, and the next batch goes on
            answers = [error] * len(items)
        self.running -= 1
        self.seconds = time.perf_counter() - started
        self.change.set()
        self.observe(len(items), self.seconds)
        for item, answer in zip(items, answers, strict=True):
            if item.answer.done():
                continue
            if isinstance(answer, Exception):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(answer)
