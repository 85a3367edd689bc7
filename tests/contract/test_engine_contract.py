"""What every engine promises, on networks whose answers are known. A new engine joins `ENGINES`; a network format or a
head joins `NETWORKS`."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import yaml
from onnx import TensorProto

from custody.wire import Box, Detection, Parameters
from inference_worker.decode import Picture, decode
from inference_worker.engines import Engine, EngineError, ModelDescription, load_engine
from tests.support.engines import BATCHED_ENGINE
from tests.support.networks import NAMES, dense_output, end_to_end_output, write_network
from tests.support.shared import BUS, YOLO11N, ZIDANE, needs_shared

needs_ultralytics = pytest.mark.skipif(not find_spec("ultralytics"), reason="ultralytics is not installed")
ENGINES = ["openvino", BATCHED_ENGINE, pytest.param("ultralytics", marks=needs_ultralytics)]

# In an input of 96 x 64: a box of class 1 from (8, 16) to (40, 48); weaker, one of class 2 from (60, 8) to (80, 28).
DENSE = dense_output([(24, 32, 32, 32, 0.1, 0.875, 0.0), (70, 18, 20, 20, 0.0, 0.0, 0.5)], classes=3)
END_TO_END = end_to_end_output([(8, 16, 40, 48, 0.875, 1), (60, 8, 80, 28, 0.5, 2)])


def dense(folder: Path) -> Path:
    return write_network(folder / "model.onnx", DENSE)


def end_to_end(folder: Path) -> Path:
    return write_network(folder / "model.onnx", END_TO_END)


def half_precision(folder: Path) -> Path:
    return write_network(folder / "model.onnx", DENSE, element_type=TensorProto.FLOAT16)


def dynamic(folder: Path) -> Path:
    return write_network(
        folder / "model.onnx", DENSE, shape=("batch", 3, "height", "width"), metadata=NAMES | {"imgsz": "[64, 96]"}
    )


def ir(folder: Path) -> Path:
    ov.save_model(ov.Core().read_model(dense(folder)), folder / "model.xml")
    return folder / "model.xml"


def ir_with_yaml(folder: Path) -> Path:
    network = ov.Core().read_model(write_network(folder / "model.onnx", DENSE, metadata={}))
    ov.save_model(network, folder / "model.xml")
    names = {0: "red", 1: "green", 2: "blue"}
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"task": "detect", "names": names, "imgsz": [64, 96]}))
    return folder / "model.xml"


NETWORKS = [dense, end_to_end, half_precision, dynamic, ir, ir_with_yaml]
LABELLED = [
    *(pytest.param("openvino", network) for network in NETWORKS),
    *(pytest.param(BATCHED_ENGINE, network) for network in NETWORKS),
    # The labels that an IR carries inside itself ultralytics does not read.
    *(pytest.param("ultralytics", network, marks=needs_ultralytics) for network in NETWORKS if network is not ir),
]


def picture(width: int = 96, height: int = 64, colour: tuple[int, int, int] = (0, 0, 0)) -> Picture:
    return Picture(np.full((height, width, 3), colour, dtype=np.uint8), width, height)


def load(name: str, model: Path, precision: str = "f32") -> Engine:
    return load_engine(name)(model, 1, precision)


@pytest.mark.parametrize(("name", "network"), LABELLED)
def test_engine_describes_its_model(name: str, network: Callable[[Path], Path], tmp_path: Path) -> None:
    engine = load(name, network(tmp_path))
    assert engine.description == ModelDescription("detect", ("red", "green", "blue"), 96, 64)


@pytest.mark.parametrize("precision", ["f32", "auto"])
@pytest.mark.parametrize(("name", "network"), LABELLED)
def test_boxes_come_labelled_in_pixels_of_the_picture(
    name: str, network: Callable[[Path], Path], precision: str, tmp_path: Path
) -> None:
    engine = load(name, network(tmp_path), precision)
    engine.warm_up()
    # Twice the input's size, and 32 rows lower: 16 rows of margin above and below within the input.
    detections = engine.infer(picture(192, 64), Parameters())
    assert detections == [
        Detection(class_id=1, label="green", confidence=0.875, box=Box(x1=16, y1=0, x2=80, y2=64)),
        Detection(class_id=2, label="blue", confidence=0.5, box=Box(x1=120, y1=0, x2=160, y2=24)),
    ]


@pytest.mark.parametrize("name", ENGINES)
def test_boxes_are_of_the_whole_picture_where_its_pixels_are_fewer(name: str, tmp_path: Path) -> None:
    engine = load(name, dense(tmp_path))
    whole = engine.infer(picture(960, 640), Parameters())
    scaled = engine.infer(Picture(picture(480, 320).pixels, 960, 640), Parameters())
    assert scaled == whole
    assert whole[0].box == Box(x1=80, y1=160, x2=400, y2=480)


@pytest.mark.parametrize("name", ENGINES)
def test_network_sees_red_green_and_blue_from_0_to_1(name: str, tmp_path: Path) -> None:
    boxes = dense_output([(24, 32, 32, 32, 0, 0, 0)], classes=3)
    weights = np.zeros((3, *boxes.shape), dtype=np.float32)
    for channel in range(3):
        weights[channel, 0, 4 + channel, 0] = 1
    model = write_network(tmp_path / "model.onnx", boxes, colour_weights=weights.reshape(3, -1))
    engine = load(name, model)
    for colour, label in [((204, 51, 0), "red"), ((51, 204, 0), "green"), ((0, 51, 204), "blue")]:
        [detection] = engine.infer(picture(colour=colour), Parameters())
        assert detection.label == label
        assert detection.confidence == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("network", [dense, end_to_end])
@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        (Parameters(conf=0.49), 2),
        (Parameters(conf=0.5), 1),
        (Parameters(conf=0.875), 0),
        (Parameters(max_detections=1), 1),
    ],
)
def test_parameters_are_obeyed(
    name: str, network: Callable[[Path], Path], parameters: Parameters, kept: int, tmp_path: Path
) -> None:
    assert len(load(name, network(tmp_path)).infer(picture(), parameters)) == kept


@pytest.mark.parametrize("name", ENGINES)
def test_one_picture_leaves_no_trace_in_the_next(name: str, tmp_path: Path) -> None:
    boxes = dense_output([(24, 32, 32, 32, 0)], classes=1)
    weights = np.zeros((3, *boxes.shape), dtype=np.float32)
    weights[0, 0, 4, 0] = 1
    model = write_network(tmp_path / "model.onnx", boxes, colour_weights=weights.reshape(3, -1), metadata={})
    engine = load(name, model)
    first = engine.infer(picture(200, 20), Parameters(conf=0))
    engine.infer(picture(colour=(255, 255, 255)), Parameters(conf=0))
    assert engine.infer(picture(200, 20), Parameters(conf=0)) == first


@pytest.mark.parametrize("name", ENGINES)
def test_model_without_labels_is_labelled_with_numbers(name: str, tmp_path: Path) -> None:
    silent = load(name, write_network(tmp_path / "dense.onnx", DENSE, metadata={}))
    assert silent.description.classes == ("0", "1", "2")
    assert [found.label for found in silent.infer(picture(), Parameters())] == ["1", "2"]
    silent = load(name, write_network(tmp_path / "end.onnx", END_TO_END, metadata={}))
    assert [found.label for found in silent.infer(picture(), Parameters())] == ["1", "2"]


@pytest.mark.parametrize("name", ENGINES)
def test_open_input_without_a_size_is_640(name: str, tmp_path: Path) -> None:
    model = write_network(tmp_path / "model.onnx", DENSE, shape=("batch", 3, "height", "width"))
    description = load(name, model).description
    assert (description.input_width, description.input_height) == (640, 640)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": np.zeros((1, 1000), np.float32)}, "shape"),
        ({"output": np.zeros((1, 400, 85), np.float32)}, "shape"),
        ({"output": dense_output([], classes=5)}, "names 3 classes"),
        ({"metadata": NAMES | {"task": "segment"}}, "task segment"),
        ({"metadata": NAMES | {"task": "depth"}}, "task depth"),
        ({"extra_output": True}, "2 outputs"),
        ({"extra_input": True}, "2 inputs|nothing else"),
        ({"shape": (4, 3, 64, 96)}, "batch 1"),
        ({"shape": (1, 1, 64, 96), "output": DENSE}, "picture as floats"),
    ],
)
def test_unfit_network_is_refused_with_its_name_and_the_reason(
    name: str, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    model = write_network(tmp_path / "odd.onnx", **({"output": DENSE} | options))
    with pytest.raises(EngineError, match=rf"odd\.onnx.*{message}"):
        load(name, model)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("text.onnx", b"this is no model", "cannot be read"),
        ("empty.onnx", b"", "cannot be read"),
        ("text.xml", b"<net/>", "cannot be read"),
        ("weights.pt", b"PK", r"neither .onnx nor .xml|weights\.pt cannot be read"),
        ("gone.onnx", None, "no model file"),
    ],
)
def test_file_that_is_no_model_is_refused(
    name: str, file: str, data: bytes | None, message: str, tmp_path: Path
) -> None:
    if data is not None:
        (tmp_path / file).write_bytes(data)
    with pytest.raises(EngineError, match=message):
        load(name, tmp_path / file)


@pytest.mark.parametrize("name", ENGINES)
def test_ir_without_its_weights_is_refused(name: str, tmp_path: Path) -> None:
    model = ir(tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(EngineError, match=r"together with its \.bin"):
        load(name, model)


@pytest.mark.parametrize("name", ENGINES)
def test_unknown_precision_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="precision int3"):
        load(name, dense(tmp_path), "int3")


@needs_shared
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 0.006), ("auto", 0.05)])
def test_real_photos_give_their_known_objects(name: str, precision: str, tolerance: float) -> None:
    """As ultralytics 8.4 finds them with these weights. Box by box: tests/ultralytics."""
    engine = load(name, YOLO11N, precision)
    expected = {
        BUS: [("bus", 0.94), ("person", 0.91), ("person", 0.85), ("person", 0.84), ("person", 0.42)],
        ZIDANE: [("person", 0.87), ("person", 0.81), ("tie", 0.48)],
    }
    for photo, objects in expected.items():
        found = engine.infer(decode(photo.read_bytes(), "image/jpeg", 1, fit=(640, 640)), Parameters(conf=0.3))
        assert [detection.label for detection in found] == [label for label, _ in objects]
        confidences = [detection.confidence for detection in found]
        np.testing.assert_allclose(confidences, [confidence for _, confidence in objects], atol=tolerance)


def test_engine_is_found_by_its_import_spec() -> None:
    assert load_engine("tests.support.engines:HazardEngine").__name__ == "HazardEngine"


@pytest.mark.parametrize("spec", ["tests.support.engines:Missing", "no.such.module:Engine"])
def test_import_spec_that_leads_nowhere_is_told(spec: str) -> None:
    with pytest.raises(EngineError, match=spec):
        load_engine(spec)


def test_unknown_engine_is_told_with_the_installed_ones() -> None:
    with pytest.raises(EngineError, match=r"no engine named abacus.*openvino"):
        load_engine("abacus")


@pytest.mark.skipif(bool(find_spec("ultralytics")), reason="ultralytics is installed")
def test_engine_whose_packages_are_missing_says_which_extra_brings_them() -> None:
    with pytest.raises(EngineError, match=r"ultralytics cannot be loaded.*wharfinger\[worker,ultralytics\]"):
        load_engine("ultralytics")
