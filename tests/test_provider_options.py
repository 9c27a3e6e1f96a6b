"""ONNX Runtime's CUDA provider knows every option that we give it: it checks them before its first call of CUDA.

No GPU is needed: a libcuda.so.1 of stand-ins, each of which fails, lets the provider load.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from onnx import TensorProto, helper

from consumers import predict
from stages.check_parity import sessions
from stages.export import triton

PROVIDER = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
LIBRARIES = r"cu(?:da|dnn|blas|fft|rand)\w+"  # whose symbols start as the driver's do
SHAPE = [1, 2]

pytestmark = pytest.mark.skipif(
    not PROVIDER.exists() or not shutil.which("gcc") or not shutil.which("nm"),
    reason="needs onnxruntime-gpu, gcc and nm",
)


def refusals(given: list[tuple[str, str]]) -> dict[str, str]:
    """Why ONNX Runtime refuses each of the options, by name and value. Only where a libcuda of stand-ins is loaded."""
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    onnxruntime.preload_dlls()
    found = {}
    for name, value in given:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        providers = [(sessions.CUDA, {name: value})]
        try:
            onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:
            if not re.search(r"CUDA (failure|error)", str(error)):
                found[f"{name}={value}"] = " ".join(str(error).split())
        else:
            raise AssertionError("a session opened on a libcuda that always fails")
    return found


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 that has every symbol of the driver that the provider asks for."""
    folder = tmp_path_factory.mktemp("driver")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", PROVIDER], capture_output=True, text=True, check=True
    ).stdout
    names = {name for name in re.findall(r" U (cu[A-Z]\w+)", listed) if not re.fullmatch(LIBRARIES, name)}
    source = folder / "cuda.c"
    source.write_text("\n".join(f"int {name}(void) {{ return 100; }}" for name in sorted(names)))
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


def options_in_use(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Every option of the CUDA provider that parity's sessions, predict.py and Triton's configuration set."""
    used = set(predict.OPTIONS["cuda"].items())
    used |= set(re.findall(r'key: "(\w+)" value: "(\w+)"', triton.CONFIG))

    def note(model: object, providers: list, *_: object) -> None:
        used.update(providers[0][1].items())
        raise InterruptedError

    monkeypatch.setattr(sessions, "_strict_session", note)
    for on in (False, True):
        with pytest.raises(InterruptedError):
            sessions.cuda_session(b"", tf32=on, cuda_graph=on, channels_last=on)
    return used


def test_the_cuda_provider_knows_every_option_and_no_other(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = sorted(options_in_use(monkeypatch))
    assert {"use_tf32", "cudnn_conv_algo_search", "enable_cuda_graph", "prefer_nhwc"} <= {name for name, _ in used}
    wrong = [("use_tf33", "0"), ("cudnn_conv_algo_search", "BOGUS"), ("enable_cuda_graph", "maybe")]
    path = os.pathsep.join([str(driver), os.environ.get("LD_LIBRARY_PATH", "")])
    code = f"from tests.test_provider_options import json, refusals\nprint(json.dumps(refusals({[*used, *wrong]!r})))"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "LD_LIBRARY_PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    refused = json.loads(run.stdout.strip().splitlines()[-1])
    assert set(refused) == {f"{name}={value}" for name, value in wrong}
    assert "use_tf33" in refused["use_tf33=0"]
