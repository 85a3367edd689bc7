"""Tiny ONNX networks whose answers are known beforehand."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NAMES = {"names": "{0: 'red', 1: 'green', 2: 'blue'}", "task": "detect"}


def dense_output(boxes: list[tuple[float, ...]], classes: int, columns: int = 20) -> NDArray[np.float32]:
    """The output of a YOLOv8 or YOLO11 head, 1 x (4 + classes) x columns. A box is (centre x, centre y, width, height,
    score of class 0, of class 1, ...); the other columns have no score."""
    output = np.zeros((1, 4 + classes, columns), dtype=np.float32)
    for column, box in enumerate(boxes):
        output[0, : len(box), column] = box
    return output


def end_to_end_output(rows: list[tuple[float, ...]], count: int = 300) -> NDArray[np.float32]:
    """The output of a YOLO26 or YOLOv10 head, 1 x count x 6. A row is (x1, y1, x2, y2, confidence, class id)."""
    output = np.zeros((1, count, 6), dtype=np.float32)
    output[0, : len(rows)] = np.reshape(rows, (-1, 6))
    return output


def write_network(
    path: Path,
    output: NDArray[np.float32],
    *,
    colour_weights: NDArray[np.float32] | None = None,
    shape: tuple[int | str, int, int | str, int | str] = (1, 3, 64, 96),
    element_type: int = TensorProto.FLOAT,
    metadata: Mapping[str, str] = NAMES,
    extra_output: bool = False,
    extra_input: bool = False,
) -> Path:
    """A network that answers `output`, plus the input's mean red, green and blue, weighted by `colour_weights`
    (3 x size of the output; nothing where absent)."""
    dtype = helper.tensor_dtype_to_np_dtype(element_type)
    weights = np.zeros((shape[1], output.size)) if colour_weights is None else colour_weights
    constants = {
        "weights": weights.astype(dtype),
        "shape": np.array(output.shape, np.int64),
        "answer": output.astype(dtype),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[0, 2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["shaped"]),
        helper.make_node("Add", ["shaped", "answer"], ["output0"]),
    ]
    inputs = [helper.make_tensor_value_info("images", element_type, shape)]
    outputs = [helper.make_tensor_value_info("output0", element_type, output.shape)]
    if extra_output:
        nodes.append(helper.make_node("Neg", ["output0"], ["output1"]))
        outputs.append(helper.make_tensor_value_info("output1", element_type, output.shape))
    if extra_input:
        nodes[3] = helper.make_node("Sum", ["shaped", "answer", "more"], ["output0"])
        inputs.append(helper.make_tensor_value_info("more", element_type, output.shape))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "known", inputs, outputs, initializers)
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return path
