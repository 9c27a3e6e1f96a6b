"""An ONNX file that keeps tensors in other files, wherever in the graph: neither predict.py nor check_parity reads them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from consumers import predict
from stages.check_parity.files import read_whole

WEIGHTS = np.arange(6, dtype=np.float32).reshape(3, 2)
PLACES = ("initializer", "constant", "branch")


def model_with_tensor_in(location: str | None, place: str) -> ModelProto:
    """Mean colour times WEIGHTS, which lie in the file `location`; None keeps them inside."""
    weights = numpy_helper.from_array(WEIGHTS, "weights")
    if location is not None:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
        weights.external_data.add(key="length", value=str(WEIGHTS.nbytes))
    initializers, nodes = [numpy_helper.from_array(np.array([1, 2]), "axes")], []
    if place == "initializer":
        initializers.append(weights)
    elif place == "constant":
        nodes.append(helper.make_node("Constant", [], ["weights"], value=weights))
    else:
        initializers.append(numpy_helper.from_array(np.array(True), "condition"))
        value = helper.make_tensor_value_info("branch", TensorProto.FLOAT, WEIGHTS.shape)
        identity = helper.make_node("Identity", ["weights"], ["branch"])
        branch = helper.make_graph([identity], "branch", [], [value], [weights])
        nodes.append(helper.make_node("If", ["condition"], ["weights"], then_branch=branch, else_branch=branch))
        nodes[0].output[0] = "chosen"
    nodes += [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "chosen" if place == "branch" else "weights"], ["probabilities"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(nodes, "model", [image], [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"class_names": '["hotdog", "not-hotdog"]'})
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the model will lie; the tensor's file lies in it, above it, and in the working folder."""
    for name in ("folder", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "folder"


@pytest.mark.parametrize("place", PLACES)
def test_the_same_model_with_its_tensor_inside_is_read(folder: Path, place: str) -> None:
    onnx.save(model_with_tensor_in(None, place), folder / "model.onnx")
    model = predict.load_model(folder / "model.onnx", "cpu")
    (answer,) = predict.run(model, [np.ones((2, 2, 3), np.uint8)])
    assert model.class_names == ["hotdog", "not-hotdog"]
    np.testing.assert_array_equal(answer.probabilities, WEIGHTS.sum(0))
    assert read_whole(folder / "model.onnx", None).graph.name == "model"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "location", ["weights.bin", "../weights.bin", "../work/weights.bin", "{absolute}", "/dev/zero"]
)
def test_predict_reads_no_tensor_from_another_file(folder: Path, place: str, location: str) -> None:
    location = location.format(absolute=folder.parent / "weights.bin")
    (folder / "model.onnx").write_bytes(model_with_tensor_in(location, place).SerializeToString())
    with pytest.raises(predict.UsageError, match=r"model\.onnx: cannot be loaded"):
        predict.load_model(folder / "model.onnx", "cpu")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../weights.bin", "../work/weights.bin", "{absolute}", "/dev/zero"])
def test_parity_refuses_a_tensor_outside_the_folder(folder: Path, place: str, location: str) -> None:
    location = location.format(absolute=folder.parent / "weights.bin")
    (folder / "model.onnx").write_bytes(model_with_tensor_in(location, place).SerializeToString())
    with pytest.raises(ValueError, match=r"model\.onnx: (keeps tensors in other files|not a whole ONNX file)"):
        read_whole(folder / "model.onnx", None)
