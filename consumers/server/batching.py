"""Dynamic batching: images of many requests through the model at once, within a budget of waiting and a bounded queue."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np


class QueueFullError(Exception):
    """There is no room for these images now; they may come again."""


@dataclass
class Item:
    image: np.ndarray  # (height, width, channels) uint8
    answer: asyncio.Future[Any]
    arrived: float  # the loop's time


class Batcher:
    """Answers images in the order of their arrival, those of one shape together.

    compute: from images of one shape to as many answers; runs in a thread of its own, one batch at a time.
    budget: seconds that the first image of a batch waits for more, while `num_expected()` says that more are on their way.
    observe: told the size of each batch and the seconds it took.
    """

    def __init__(
        self,
        compute: Callable[[list[np.ndarray]], list[Any]],
        *,
        max_batch: int,
        max_queue: int,
        budget: float,
        num_expected: Callable[[], int],
        observe: Callable[[int, float], None],
    ) -> None:
        self.compute, self.observe, self.num_expected = compute, observe, num_expected
        self.max_batch, self.max_queue, self.budget = max_batch, max_queue, budget
        self.queue: deque[Item] = deque()
        self.arrival = asyncio.Event()
        self.closing = False

    async def submit(self, images: list[np.ndarray]) -> list[Any]:
        """The answers, in order. Raises QueueFullError at once where there is no room for all."""
        if self.closing or len(self.queue) + len(images) > self.max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        items = [Item(image, loop.create_future(), loop.time()) for image in images]
        self.queue.extend(items)
        self.arrival.set()
        return await asyncio.gather(*(item.answer for item in items))

    async def run(self) -> None:
        """Answer until `close`, and then what is left."""
        with ThreadPoolExecutor(1, "model") as thread:
            while not (self.closing and not self.queue):
                if self.queue:
                    await self._wait_for_more()
                    await self._answer(self._take(), thread)
                else:
                    self.arrival.clear()
                    await self.arrival.wait()

    def close(self) -> None:
        self.closing = True
        self.arrival.set()

    async def _wait_for_more(self) -> None:
        try:
            async with asyncio.timeout_at(self.queue[0].arrived + self.budget):
                while len(self.queue) < min(self.max_batch, self.num_expected()):
                    self.arrival.clear()
                    await self.arrival.wait()
        except TimeoutError:
            return

    def _take(self) -> list[Item]:
        """The first image and those of its shape; who has gone meanwhile is left out."""
        taken: list[Item] = []
        others: deque[Item] = deque()
        while self.queue and len(taken) < self.max_batch:
            item = self.queue.popleft()
            if item.answer.done():
                continue
            (others if taken and taken[0].image.shape != item.image.shape else taken).append(item)
        self.queue.extendleft(reversed(others))
        return taken

    async def _answer(self, items: list[Item], thread: ThreadPoolExecutor) -> None:
        if not items:
            return
        started = time.perf_counter()
        images = [item.image for item in items]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(thread, self.compute, images)
        except Exception as error:  # the requests are told, and the next batch goes on
            answers = [error] * len(items)
        self.observe(len(items), time.perf_counter() - started)
        for item, answer in zip(items, answers, strict=True):
            if item.answer.done():
                continue
            if isinstance(answer, Exception):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(answer)
