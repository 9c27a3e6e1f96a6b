"""The state that the routes share: the model with its batcher, the limits, the counters; and how pictures reach the model."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from fastapi import Request
from PIL import Image
from starlette.formparsers import MultiPartException, MultiPartParser

from consumers import predict
from consumers.server import protocol
from consumers.server.batching import Batcher
from consumers.server.guard import log
from consumers.server.limits import Admission, Limits, RefusedError
from consumers.server.metrics import Metrics
from consumers.server.model_file import ModelFile

SMALL = 2**14  # bytes of JSON that are read at once: the way to a thread and back takes longer


class Service:
    """One model file being served."""

    def __init__(self, file: ModelFile, limits: Limits, *, max_batch: int, max_queue: int, budget: float) -> None:
        self.file, self.limits, self.metrics = file, limits, Metrics()
        self.admission = Admission(limits)
        self.ready = False
        self.decoders = ThreadPoolExecutor(os.cpu_count(), "decoder")
        self.batcher = Batcher(
            predict.infer,
            max_batch=max_batch,
            at_once=2 if file.provider == "cpu" else 1,
            max_queue=max_queue,
            budget=budget,
            num_expected=lambda: self.admission.requests,
            observe=self.metrics.observe_batch,
        )
        self.metrics.queued.set_function(lambda: len(self.batcher.queue))
        self.metrics.active.set_function(lambda: self.admission.requests)
        self.metrics.wait.set_function(lambda: self.admission.wait)

    async def run(self) -> None:
        """Answer until cancelled, and then what was taken."""
        watcher = asyncio.create_task(self.file.watch(self.tell_reload))
        batches = asyncio.create_task(self.batcher.run())
        self.ready = True
        try:
            await asyncio.Event().wait()
        finally:
            self.ready = False
            watcher.cancel()
            self.batcher.close()
            await batches
            self.decoders.shutdown(wait=False, cancel_futures=True)

    def tell_reload(self, outcome: str, detail: str) -> None:
        self.metrics.reloads.labels(outcome).inc()
        log(event="model", outcome=outcome, detail=detail)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, partial(function, *arguments))

    async def read(
        self, model: predict.Model, body: bytes, header_length: str | None
    ) -> tuple[protocol.Request, list[np.ndarray]]:
        """An inference request, and its pictures as the model's own files are. Raises ProtocolError."""
        text, binary = protocol.split(body, header_length)
        arguments = text, binary, self.limits.images, self.limits.pixels
        large = len(text) > SMALL
        asked = await self.in_thread(protocol.parse, *arguments) if large else protocol.parse(*arguments)
        side = model.side
        if side is None or asked.images.shape[1:] == (side, side, 3):
            return asked, list(asked.images)
        return asked, await self.in_thread(resize, asked.images, side)

    async def classify(self, model: predict.Model, images: list[np.ndarray]) -> list[predict.Result]:
        """Results by the model that the images were read for: a newer one may take over at any time. Counts them, by decision."""
        results: list[predict.Result] = await self.batcher.submit(model, images)
        for result in results:
            decision = predict.decide(model, result) if isinstance(result, predict.Answer) else "failed"
            self.metrics.answers.labels(decision).inc()
        return results


def decode(content: bytes, side: int | None) -> np.ndarray:
    """A picture's file as predict.py reads it. Raises RefusedError."""
    try:
        return predict.decode(BytesIO(content), side)
    except predict.ImageError as error:
        raise RefusedError(400, f"the picture {error}") from None


def resize(images: np.ndarray, side: int) -> list[np.ndarray]:
    """uint8 (batch, height, width, 3 or 4) as predict.py makes of files: on white, and at the side that the model resizes to."""
    rgb = (predict.to_rgb(Image.fromarray(np.ascontiguousarray(image))) for image in images)
    return [np.asarray(predict.resize(image, side)) for image in rgb]


async def picture_in(request: Request, body: bytes) -> bytes:
    """The body itself, or the one file of a form."""
    if not body:
        raise RefusedError(400, "the body is empty; send a picture's file")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return body

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=8)
        parser.spool_max_size = len(body) + 1  # it is in memory already; the disk may not be written to
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise RefusedError(400, f"the form cannot be read: {getattr(error, 'message', 'no boundary')}") from None
    for part in form.values():
        if not isinstance(part, str):
            content = await part.read()
            await form.close()
            return content
    raise RefusedError(400, "the form holds no file")
