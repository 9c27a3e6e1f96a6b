"""Load consumers/server on this machine: its throughput, latency and manners when it gets more than it can take.

    python -m benchmarks.serving --model artifacts/model.onnx [--seconds 20] [--overload 600]

Servers are processes of their own on 127.0.0.1; the load generator shares the cores with them, and what it used is told.
Bounded in time and requests. Each result is written as soon as it is there; `--only` measures some of them again.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.serving.load import Load, closed_loop, open_loop
from benchmarks.serving.references import (
    BATCH_SIZE,
    classify_alone,
    classify_request,
    decode_all,
    decode_alone,
    infer_alone,
    infer_request,
    write_jpegs,
)
from benchmarks.serving.servers import (
    NAIVE_PORT,
    PORT,
    ROOT,
    cpu_seconds,
    resident,
    serve_naively,
    serving,
    serving_naively,
)
from consumers import predict

CLIENTS = 64
EXCESS = 1.2
Result = dict[str, Any]
RESULT = ROOT / "benchmarks" / "results" / "serving.json"


def main() -> None:
    sections = {
        "references": references,
        "folder": folder,
        "naive": naive,
        "infer": infer,
        "infer, 16 images a request": infer_batches,
        "classify": classify,
        "overload": overload,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "artifacts" / "model.onnx")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--photos", type=int, default=10_000, help="in the folder for predict.py")
    parser.add_argument("--overload", type=float, default=60, help="seconds at 1.2 times the capacity")
    parser.add_argument("--only", nargs="+", choices=sections, default=list(sections), help="measure these alone")
    parser.add_argument("--naive", type=int, help="serve the naive endpoint on this port, and nothing else")
    options = parser.parse_args()
    if options.naive:
        return serve_naively(options.model, options.naive)
    work = Work(options.model, write_jpegs(32), options.seconds, options.photos, options.overload)
    for name in options.only:
        measured = {"load average before": round(os.getloadavg()[0], 1), **sections[name](work)}
        results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        results["machine"] = describe_machine()
        results.setdefault(describe_model(options.model), {})[name] = measured
        RESULT.write_text(json.dumps(results, indent=2) + "\n")
        print(json.dumps({name: measured}, indent=2), flush=True)
    return None


@dataclass(frozen=True)
class Work:
    """The things that every section measures with."""

    model: Path
    photos: list[bytes]
    seconds: float
    num_files: int
    overload: float  # seconds

    def images(self) -> list[np.ndarray]:
        return decode_all(self.photos, predict.load_model(self.model, "cpu").side)


def references(work: Work) -> Result:
    rates = {
        "ONNX Runtime alone": infer_alone(work.model, work.images(), work.seconds),
        "decoding alone": decode_alone(work.model, work.photos, work.seconds),
        "decoding beside ONNX Runtime": classify_alone(work.model, work.photos, work.seconds),
    }
    return {name: as_row(*values) for name, values in rates.items()}


def folder(work: Work) -> Result:
    """predict.py over a folder, its answers written as CSV; start and end of the program are counted."""
    with tempfile.TemporaryDirectory() as scratch:
        for index, photo in enumerate(work.photos):
            Path(scratch, f"{index}.jpg").write_bytes(photo)
        photos, answers = Path(scratch, "photos"), Path(scratch, "answers.csv")
        photos.mkdir()
        for index in range(work.num_files):
            (photos / f"{index:06}.jpg").hardlink_to(Path(scratch, f"{index % len(work.photos)}.jpg"))
        program = [sys.executable, str(ROOT / "consumers" / "predict.py"), str(photos)]
        started = time.perf_counter()
        process = subprocess.Popen([*program, "--model", str(work.model.resolve()), "--output", str(answers)])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        rows = sum(1 for _ in answers.open()) - 1
    row = as_row(rows / seconds, (usage.ru_utime + usage.ru_stime) / max(1, rows))
    return {"files": work.num_files, "rows": rows, "status": status, **row, "peak resident MB": usage.ru_maxrss // 1024}


def naive(work: Work) -> Result:
    with serving_naively(work.model) as process:
        return saturate(NAIVE_PORT, [classify_request(photo) for photo in work.photos], work.seconds, process.pid)[1]


def infer(work: Work) -> Result:
    return profile(work, [infer_request(image[None]) for image in work.images()])


def infer_batches(work: Work) -> Result:
    """The same batches that ONNX Runtime alone gets, from as few clients as have 64 images on their way."""
    images = np.stack(work.images())
    requests = [infer_request(images[start : start + BATCH_SIZE]) for start in range(0, len(images), BATCH_SIZE)]
    with serving(work.model) as process:
        alone = asyncio.run(closed_loop(PORT, requests, 1, work.seconds / 2))
        saturated = saturate(PORT, requests, work.seconds, process.pid, CLIENTS // BATCH_SIZE, BATCH_SIZE)[1]
    return {"1 client, ms": milliseconds(alone), "4 clients": saturated}


def classify(work: Work) -> Result:
    return profile(work, [classify_request(photo) for photo in work.photos])


def profile(work: Work, requests: list[bytes]) -> Result:
    """One client, 64 clients that never rest, and half of what those got: evenly spaced, and at random times."""
    with serving(work.model) as process:
        alone = asyncio.run(closed_loop(PORT, requests, 1, work.seconds / 2))
        rate, saturated = saturate(PORT, requests, work.seconds, process.pid)
        even = asyncio.run(open_loop(PORT, requests, rate / 2, work.seconds, even=True))
        random = asyncio.run(open_loop(PORT, requests, rate / 2, work.seconds))
    return {
        "1 client, ms": milliseconds(alone),
        "64 clients": saturated,
        "half load, evenly spaced, ms": milliseconds(even),
        "half load, at random times, ms": milliseconds(random),
    }


def overload(work: Work) -> Result:
    """1.2 times as many pictures as it can take, whatever else runs on this machine meanwhile."""
    requests = [classify_request(photo) for photo in work.photos]
    with serving(work.model) as process:
        rate, _ = saturate(PORT, requests, work.seconds, process.pid)
        before = resident(process.pid)
        load = asyncio.run(open_loop(PORT, requests, EXCESS * rate, work.overload, excess=EXCESS))
        after = resident(process.pid)
    return {
        "seconds": work.overload,
        "asked": load.asked,
        "answers": dict(load.statuses),
        "ms": milliseconds(load),
        "resident MB, before and after": [before, after],
    }


def saturate(
    port: int, requests: list[bytes], seconds: float, pid: int, clients: int = CLIENTS, images: int = 1
) -> tuple[float, Result]:
    """By clients that never rest, after a fourth of the time to warm up; each request has so many images."""
    asyncio.run(closed_loop(port, requests, clients, seconds / 4))
    before = cpu_seconds(pid)
    load = asyncio.run(closed_loop(port, requests, clients, seconds))
    answered = max(1, images * load.statuses["200"])
    row = as_row(images * load.rate, (cpu_seconds(pid) - before) / answered)
    return load.rate, {**row, "CPU ms of the clients": round(1000 * load.own_cpu / answered, 2)}


def as_row(rate: float, cpu: float) -> Result:
    """Processor time beside the clock's: a busy machine disturbs it less."""
    return {"images/s": round(rate, 1), "CPU ms an image": round(1000 * cpu, 2)}


def milliseconds(load: Load) -> Result:
    return {name: round(load.quantile(q), 1) for name, q in (("p50", 0.5), ("p99", 0.99))}


def describe_machine() -> str:
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return f"{model.partition(': ')[2]}, {os.cpu_count()} cores"


def describe_model(path: Path) -> str:
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    return f"{metadata['architecture']}, {json.loads(metadata['test_transform'])['crop']} px"


if __name__ == "__main__":
    main()
