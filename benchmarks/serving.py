"""Load consumers/server on this machine: its throughput, latency and manners when it gets more than it can take.

    python -m benchmarks.serving --model artifacts/model.onnx [--seconds 20] [--overload 600]

Beside it, on the same photos: ONNX Runtime's own batches, and a naive endpoint that decodes and runs one picture at a time.
Servers are processes of their own on 127.0.0.1; the clients share the cores with them. Bounded in time and requests.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from consumers import predict

ROOT = Path(__file__).parents[1]
CLIENTS = 64
RESULT = ROOT / "benchmarks" / "results" / "serving.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "artifacts" / "model.onnx")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--overload", type=float, default=60, help="seconds at 1.2 times the capacity")
    parser.add_argument("--naive", type=int, help="serve the naive endpoint on this port, and nothing else")
    options = parser.parse_args()
    if options.naive:
        serve_naively(options.model, options.naive)
    else:
        results = measure(options.model, options.seconds, options.overload)
        RESULT.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps(results, indent=2))


def measure(model: Path, seconds: float, overload: float) -> dict[str, object]:
    """Rates by the clock, and the processor time of an image, which a busy machine disturbs less."""
    photos = write_jpegs(32)
    own_rate, own_cpu = run_alone(model, photos, seconds)
    results: dict[str, object] = {
        "load average before": os.getloadavg()[0],
        "ONNX Runtime alone": describe(own_rate, own_cpu),
    }
    with running(
        [sys.executable, "-m", "benchmarks.serving", "--naive", "8031", "--model", str(model)], 8031
    ) as process:
        results["naive endpoint, 64 clients"] = saturate(8031, photos, seconds, process.pid)[1]
    serve = [sys.executable, str(ROOT / "consumers" / "server" / "serve.py"), "--model", str(model), "--port", "8032"]
    with running(serve, 8032) as process:
        alone = asyncio.run(closed_loop(8032, photos, 1, seconds / 2))
        results["one client, median ms"] = round(alone.quantile(0.5), 1)
        rate, results["64 clients"] = saturate(8032, photos, seconds, process.pid)
        half = asyncio.run(open_loop(8032, photos, rate / 2, seconds))
        results["half load, ms"] = {name: round(half.quantile(q), 1) for name, q in (("p50", 0.5), ("p99", 0.99))}
        before = resident(process.pid)
        most = asyncio.run(open_loop(8032, photos, 1.2 * rate, overload))
        results["1.2 x capacity"] = {
            "seconds": overload,
            "asked": most.asked,
            "answers": dict(most.statuses),
            "p99 ms": round(most.quantile(0.99), 1),
            "resident MB": [before, resident(process.pid)],
        }
    return results


def describe(rate: float, cpu: float) -> dict[str, float]:
    return {"images/s": round(rate, 1), "CPU ms an image": round(1000 * cpu, 2)}


def saturate(port: int, photos: list[bytes], seconds: float, pid: int) -> tuple[float, dict[str, float]]:
    asyncio.run(closed_loop(port, photos, CLIENTS, seconds / 4))  # warm
    before = cpu_seconds(pid)
    load = asyncio.run(closed_loop(port, photos, CLIENTS, seconds))
    return load.rate, describe(load.rate, (cpu_seconds(pid) - before) / max(1, load.statuses["200"]))


def write_jpegs(count: int) -> list[bytes]:
    """Photos as phones and web pages have them: a few sizes."""
    rng = np.random.default_rng(0)
    photos = []
    for index in range(count):
        width, height = ((640, 480), (480, 640), (500, 375), (300, 300))[index % 4]
        image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), 3)
        out = BytesIO()
        image.save(out, "JPEG", quality=90)
        photos.append(out.getvalue())
    return photos


def run_alone(path: Path, photos: list[bytes], seconds: float) -> tuple[float, float]:
    """Images a second, and processor seconds an image, of ONNX Runtime alone in the batches that the server makes."""
    model = predict.load_model(path, "cpu")
    batch = [predict.decode(BytesIO(photo), model.side) for photo in photos[:16]]
    predict.infer(model, batch)
    count, started, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        predict.infer(model, batch)
        count += len(batch)
    return count / (time.perf_counter() - started), (time.process_time() - used) / count


def serve_naively(path: Path, port: int) -> None:
    """The naive server that one writes first: decode, run, answer; a picture at a time in a thread of the framework's."""
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI, Request

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    app = FastAPI()

    @app.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/classify")
    async def classify(request: Request) -> list[float]:
        image = Image.open(BytesIO(await request.body())).convert("RGB")
        row: list[float] = session.run(["probabilities"], {"image": np.asarray(image)[None]})[0][0].tolist()
        return row

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


# the load


@dataclass
class Load:
    """The answers that came back."""

    asked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)  # seconds, of those answered 200
    seconds: float = 0

    @property
    def rate(self) -> float:
        return self.statuses["200"] / self.seconds

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        return 1000 * float(np.quantile(self.latencies, share)) if self.latencies else float("nan")


class Connection:
    """One that is kept and opened again where the server closed it."""

    def __init__(self, port: int) -> None:
        self.port, self.reader, self.writer = port, None, None

    async def ask(self, body: bytes) -> str:
        """The status, or the name of what went wrong."""
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            head = f"POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            self.writer.write(head.encode() + body)
            header = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next(line.split(": ")[1] for line in header.splitlines() if line.startswith("content-length"))
            await self.reader.readexactly(int(length))
            if "connection: close" in header:
                self.close()
            return header.split()[1]
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return type(error).__name__

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.writer = None


async def timed(connection: Connection, body: bytes, load: Load) -> None:
    started = time.perf_counter()
    load.asked += 1
    status = await connection.ask(body)
    load.statuses[status] += 1
    if status == "200":
        load.latencies.append(time.perf_counter() - started)


async def closed_loop(port: int, photos: list[bytes], num_clients: int, seconds: float) -> Load:
    """Each client asks again as soon as it is answered."""
    load, started = Load(), time.perf_counter()

    async def client(number: int) -> None:
        connection, count = Connection(port), number
        while time.perf_counter() - started < seconds:
            await timed(connection, photos[count % len(photos)], load)
            count += 1
        connection.close()

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(port: int, photos: list[bytes], rate: float, seconds: float) -> Load:
    """Requests come at random times, `rate` a second, whether or not earlier ones were answered."""
    rng, load, started = np.random.default_rng(0), Load(), time.perf_counter()
    free: list[Connection] = []
    running: set[asyncio.Task[None]] = set()

    async def request(number: int) -> None:
        connection = free.pop() if free else Connection(port)
        await timed(connection, photos[number % len(photos)], load)
        free.append(connection)

    due = started
    for number in range(int(rate * seconds)):
        due += rng.exponential(1 / rate)
        await asyncio.sleep(max(0, due - time.perf_counter()))
        task = asyncio.create_task(request(number))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    for connection in free:
        connection.close()
    load.seconds = time.perf_counter() - started
    return load


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        while not is_open(port):
            if process.poll() is not None:
                raise SystemExit(f"error: {command[1]} ended with {process.returncode}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(timeout=60)


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Megabytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) // 1024


if __name__ == "__main__":
    main()
