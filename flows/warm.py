"""Run a command whose stages are forks of one process that has imported their libraries.

Importing torch and torchvision takes a stage some five seconds, and a run of all stages starts a dozen and a half. While the
command runs, `python` is a small script that hands `-m module arguments`, the working folder, the environment and the three
streams to a server, which forks and runs the module; without a server, and for anything else, it starts the real python.
While the server still imports, it waits: to import the same beside it would take longer. What needs none of it goes at once.
"""

import contextlib
import importlib.util
import json
import os
import runpy
import shlex
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from flows import supervise

GRACE = 10.0  # seconds for a stage to end when the command has
PATIENCE = 120.0  # seconds that a client waits for a server whose end it has not been told
LIBRARIES = ("torch", "torchvision", "sympy", "onnx", "onnxruntime", "scipy.stats", "sklearn.metrics", "sklearn.linear_model",
             "matplotlib.figure", "PIL.Image", "pydantic", "ruamel.yaml", "safetensors.torch", "jinja2", "tqdm")  # fmt: skip
SLOW = 2  # the first ones, half of the time; then sympy, which torchvision imports and whose bytecode takes long


CLIENT = """\
import json, os, socket, sys, time
request = json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}).encode()
connection = socket.socket(socket.AF_UNIX)
try:
    assert sys.argv[1] == "-m" and " ".join(sys.argv[2:]) not in {light!r}
    folder, deadline = os.path.dirname({address!r}), time.monotonic() + {patience}
    while time.monotonic() < deadline and not {{"socket", "failed"}}.intersection(os.listdir(folder)):
        time.sleep(0.02)
    connection.connect({address!r})
except (AssertionError, IndexError, OSError):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
socket.send_fds(connection, [len(request).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(request)
sys.exit(int(connection.recv(16) or b"1"))
"""


@contextlib.contextmanager
def python(libraries: Sequence[str] = LIBRARIES, light: Sequence[str] = ()) -> Iterator[Path]:
    """Start the server; yields the folder with its `python`, to be put in front of PATH.

    `light` are command lines, as `stages.download dataset`, that need none of the libraries.
    """
    with tempfile.TemporaryDirectory(prefix="warm-") as name:
        folder, address = Path(name), f"{name}/socket"
        settings = {"python": sys.executable, "address": address, "patience": PATIENCE, "light": list(light)}
        (folder / "client.py").write_text(CLIENT.format(**settings))
        client = folder / "python"
        client.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -IS {folder}/client.py "$@"\n')
        client.chmod(0o755)
        command = [sys.executable, "-m", "flows.warm", address, *libraries]
        server = supervise.start(command, grace=GRACE, cwd=Path(__file__).parents[1])
        try:
            yield folder
        finally:
            supervise.stop(server, grace=GRACE)


def main(address: str, *libraries: str) -> None:
    """Serve requests side by side, each by a fork that waits for the stage's. Until the libraries are there, none can connect."""
    helper = compile_beside(libraries[SLOW:])
    try:
        for library in libraries:
            importlib.import_module(library)
    except BaseException:
        Path(address).with_name("failed").touch()
        raise
    if helper:
        os.waitpid(helper, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the waiting forks
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.part")
        listener.listen()
        Path(f"{address}.part").rename(address)  # whoever sees it can connect
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listener.close()
                    _serve(connection)


def compile_beside(libraries: Sequence[str]) -> int | None:
    """Where libraries were never imported yet, import them in a fork too, for the bytecode that it leaves; returns its process ID."""
    specs = [importlib.util.find_spec(library.partition(".")[0]) for library in libraries]
    compiled = all(Path(spec.cached).exists() for spec in specs if spec and spec.cached)  # a namespace has no file
    if compiled or sys.dont_write_bytecode:
        return None
    pid = os.fork()
    if pid == 0:
        try:
            for library in libraries:
                importlib.import_module(library)
        finally:
            os._exit(0)
    return pid


def _serve(connection: socket.socket) -> NoReturn:
    """Run what is asked for in a fork, and answer with its exit code."""
    request, streams = _read(connection)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _run(request, streams)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):  # the client is gone
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def _read(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    missing = int.from_bytes(size, "big")
    content = b""
    while len(content) < missing and (part := connection.recv(missing - len(content))):
        content += part
    return json.loads(content), streams


def _run(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Become `python -m module arguments` as it was asked for."""
    code: Any = 0
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS")):
            outermost = threads.split(",")[0]  # there may be a number for each level of nesting
            sys.modules["torch"].set_num_threads(int(outermost))  # it read the server's when it was imported
        _, module, *arguments = request["argv"]
        sys.argv, sys.path[0] = [module, *arguments], request["cwd"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
