"""The load on the server: its requests are what the protocol reads, and every answer is counted."""

import asyncio
from collections import Counter

import numpy as np

from benchmarks.serving.load import Load, follow, open_loop
from benchmarks.serving.references import infer_request
from consumers.server import protocol


def test_a_request_built_beforehand_holds_its_images() -> None:
    images = np.arange(2 * 2 * 3 * 3, dtype=np.uint8).reshape(2, 2, 3, 3)
    head, _, body = infer_request(images).partition(b"\r\n\r\n")
    fields = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    assert int(fields[b"Content-Length"]) == len(body)
    asked = protocol.parse(*protocol.split(body, fields[b"Inference-Header-Content-Length"].decode()), 2, 12)
    assert (asked.images == images).all()


async def load_of_a_server_that_answers(*answers: bytes) -> Load:
    """20 requests, to which it gives `answers` in turn."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            answer = answers[count % len(answers)]
            count += 1
            writer.write(answer)
            if b"close" in answer or not answer:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await open_loop(port, [b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"], 1000, 0.0205, even=True)


def test_every_answer_is_counted_and_only_good_ones_are_timed() -> None:
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    refused = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    load = asyncio.run(load_of_a_server_that_answers(good, refused, good, b""))
    assert load.asked == 20
    assert load.statuses == Counter({"200": 10, "503": 5, "IncompleteReadError": 5})
    assert len(load.latencies) == 10


def test_an_overload_stays_one_while_the_machine_gets_faster_slower_or_pauses() -> None:
    assert follow(100, 1.2, answered=100) == 120  # it could take all, so more
    assert follow(120, 1.2, answered=100) == 120
    assert follow(120, 1.2, answered=80) == 96
    assert follow(120, 1.2, answered=0) == 60
