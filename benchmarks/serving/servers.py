"""The servers under load, each a process of its own on 127.0.0.1: ours, and a naive one."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
NAIVE_PORT, PORT = 8031, 8032


def serving(model: Path) -> contextlib.AbstractContextManager["subprocess.Popen[bytes]"]:
    serve = str(ROOT / "consumers" / "server" / "serve.py")
    return running([sys.executable, serve, "--model", str(model), "--port", str(PORT)], PORT)


def serving_naively(model: Path) -> contextlib.AbstractContextManager["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "benchmarks.serving", "--naive", str(NAIVE_PORT), "--model", str(model)]
    return running(command, NAIVE_PORT)


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        while not is_open(port):
            if process.poll() is not None:
                raise SystemExit(f"error: {command[1]} ended with {process.returncode}")
            time.sleep(0.1)
        time.sleep(0.1)
        if process.poll() is not None:  # what listens there is another program
            raise SystemExit(f"error: port {port} is taken: {command[1]} ended with {process.returncode}")
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


def serve_naively(path: Path, port: int) -> None:
    """The server that one writes first: decode, run, answer; a picture at a time."""
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI, Request

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    app = FastAPI()

    @app.post("/classify")
    async def classify(request: Request) -> list[float]:
        image = Image.open(BytesIO(await request.body())).convert("RGB")
        row: list[float] = session.run(["probabilities"], {"image": np.asarray(image)[None]})[0][0].tolist()
        return row

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
