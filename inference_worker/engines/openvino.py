"""The OpenVINO engine: YOLO detection networks on the CPU, from .onnx or OpenVINO IR (.xml with its .bin)."""

import json
import sys
from hashlib import file_digest, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import yaml
from openvino.preprocess import PrePostProcessor

from custody.wire import Detection, Parameters
from inference_worker.decode import Picture
from inference_worker.engines import EngineError, ModelDescription
from inference_worker.engines.compiled import CompiledCache
from inference_worker.engines.metadata import Metadata, read_metadata
from inference_worker.engines.yolo import Head, Letterbox, UnknownHeadError, choose_head, to_detections

DEFAULT_SIDE = 640
"""Side of the input where neither the model's shape nor its metadata tells it."""

DEVICE = "CPU"

PRECISIONS = {"auto": {}, "f32": {"INFERENCE_PRECISION_HINT": "f32"}}


class OpenVINOEngine:
    """See `Engine`. One network with a static shape, one stream, one InferRequest. Its input is the letterboxed
    picture as bytes: the conversion to floats of 0 to 1 is a part of the compiled network."""

    version = ov.__version__.partition("-")[0]

    keeps_compiled = True

    def __init__(self, model_path: Path, threads: int, precision: str, compiled: CompiledCache | None = None) -> None:
        if precision not in PRECISIONS:
            raise EngineError(f"The precision {precision} is unknown to the openvino engine. Use one of: auto, f32.")
        core = ov.Core()
        network = _read(core, model_path)
        metadata = _metadata(network, model_path)
        if metadata.task not in (None, "detect"):
            raise EngineError(
                f"{model_path} is a model for the task {metadata.task}; this engine does detect only. "
                "Give it a detection model, or set WHARF_ENGINE=ultralytics."
            )
        height, width = _make_static(network, metadata, model_path)
        self._head = _head(network, metadata, model_path)
        self._description = ModelDescription("detect", metadata.classes or _numbers(network), width, height)
        self._canvas = np.zeros((1, height, width, 3), dtype=np.uint8)
        network = _with_byte_input(network)
        settings = _settings(threads, precision)
        if compiled is None:
            ready = core.compile_model(network, DEVICE, settings)
        else:
            ready = _compile_once(core, network, settings, compiled, _key(core, model_path, network, settings))
        self._request = ready.create_infer_request()
        self._request.set_input_tensor(ov.Tensor(self._canvas, shared_memory=True))

    @property
    def description(self) -> ModelDescription:
        return self._description

    def warm_up(self) -> None:
        self._request.infer()

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        letterbox = Letterbox(
            picture.width, picture.height, self._description.input_width, self._description.input_height
        )
        letterbox.draw(picture.pixels, self._canvas[0])
        self._request.infer()
        rows = self._head(self._request.get_output_tensor().data, parameters)
        return to_detections(rows, letterbox, self._description.classes)


def _read(core: ov.Core, model_path: Path) -> ov.Model:
    if model_path.suffix not in (".onnx", ".xml"):
        raise EngineError(
            f"{model_path} is neither .onnx nor .xml. Export the model to ONNX or OpenVINO first: `wharf models add` "
            "does that for a .pt file, which is a pickle and is not accepted here."
        )
    if not model_path.is_file():
        raise EngineError(f"There is no model file {model_path}. Check the path and the volume's mount.")
    try:
        return core.read_model(model_path)
    except RuntimeError as error:
        raise EngineError(
            f"{model_path} cannot be read as a model; export it again, and copy an .xml together with its .bin. "
            f"OpenVINO says: {_gist(error)}"
        ) from error


def _metadata(network: ov.Model, model_path: Path) -> Metadata:
    """From metadata.yaml beside an IR, else from what the IR or ONNX file carries."""
    beside = model_path.with_name("metadata.yaml")
    if model_path.suffix == ".xml" and beside.is_file():
        try:
            values = yaml.safe_load(beside.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise EngineError(f"{beside} is not valid YAML: {error}. Export the model again.") from error
        return read_metadata(values if isinstance(values, dict) else {})
    keys = [key for key in ("task", "names", "imgsz") if network.has_rt_info(["framework", key])]
    return read_metadata({key: network.get_rt_info(["framework", key]).astype(str) for key in keys})


def _make_static(network: ov.Model, metadata: Metadata, model_path: Path) -> tuple[int, int]:
    """Fixes every open dimension of the input; gives its height and width."""
    if len(network.inputs) != 1:
        raise EngineError(f"{model_path} has {len(network.inputs)} inputs; a detection model has one. Export it again.")
    shape = network.inputs[0].partial_shape
    if shape.rank.is_dynamic or shape.rank.get_length() != 4 or not network.inputs[0].element_type.is_real():
        raise _wrong_input(network, model_path)
    height, width = metadata.size or (DEFAULT_SIDE, DEFAULT_SIDE)
    wanted = (1, 3, height, width)
    sides = [want if side.is_dynamic else side.get_length() for side, want in zip(shape, wanted, strict=True)]
    if sides[:2] != [1, 3]:
        raise _wrong_input(network, model_path)
    if shape.is_dynamic:
        try:
            network.reshape(sides)
        except RuntimeError as error:
            raise EngineError(
                f"{model_path} cannot take an input of {sides}; export it with a static shape. "
                f"OpenVINO says: {_gist(error)}"
            ) from error
    return sides[2], sides[3]


def _wrong_input(network: ov.Model, model_path: Path) -> EngineError:
    found = network.inputs[0]
    return EngineError(
        f"{model_path} takes {found.element_type.get_type_name()} {found.partial_shape}; a detection model takes one "
        "picture as floats, 1 x 3 x height x width. Export it again with batch 1."
    )


def _head(network: ov.Model, metadata: Metadata, model_path: Path) -> Head:
    advice = "Give it a YOLO detection model (v8, 11, 26 or v10), exported without other outputs."
    if len(network.outputs) != 1:
        raise EngineError(f"{model_path} has {len(network.outputs)} outputs; a detection model has one. {advice}")
    shape = network.outputs[0].partial_shape
    if shape.is_dynamic:
        raise EngineError(f"{model_path} has an output without a fixed shape, {shape}. {advice}")
    classes = None if metadata.classes is None else len(metadata.classes)
    try:
        return choose_head(tuple(shape.to_shape()), classes)
    except UnknownHeadError as error:
        raise EngineError(f"{model_path} is not understood: {error}. {advice}") from error


def _numbers(network: ov.Model) -> tuple[str, ...]:
    """Labels for a model without any: a dense head tells how many classes there are, an end-to-end one does not."""
    _, channels, columns = network.outputs[0].shape
    return () if columns == 6 else tuple(map(str, range(channels - 4)))


def _with_byte_input(network: ov.Model) -> ov.Model:
    """Bytes in RGB, height x width x channel, go in; float32 comes out, whatever the network computes in."""
    steps = PrePostProcessor(network)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    steps.output().tensor().set_element_type(ov.Type.f32)
    return steps.build()


def _settings(threads: int, precision: str) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        # Measured: several processes that pin themselves fight over the same cores.
        "ENABLE_CPU_PINNING": False,
        **PRECISIONS[precision],
    }


def _compile_once(
    core: ov.Core, network: ov.Model, settings: dict[str, Any], cache: CompiledCache, key: str
) -> ov.CompiledModel:
    kept = cache.find(key)
    if kept is not None:
        try:
            return core.import_model(kept, DEVICE, settings)
        except RuntimeError as error:
            sys.stderr.write(f"OpenVINO does not take what was compiled before: {_gist(error)}\n")
    ready = core.compile_model(network, DEVICE, settings)
    cache.keep(key, ready.export_model().getvalue())
    return ready


def _key(core: ov.Core, model_path: Path, network: ov.Model, settings: dict[str, Any]) -> str:
    """Of all that decides what is compiled: the model, what we make of it, OpenVINO, its settings, and the CPU."""
    decisive = {
        "model": [_sha256(part) for part in (model_path, model_path.with_suffix(".bin")) if part.is_file()],
        "input": str(network.inputs[0].partial_shape),
        "settings": settings,
        "releases": [version("wharfinger"), ov.__version__],
        "device": [str(core.get_property(DEVICE, name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")],
        "instructions": _instructions(),
    }
    return sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _instructions() -> list[str]:
    """What the CPU can, as Linux says it: OpenVINO tells less."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    return [line for line in lines if line.startswith(("flags", "Features"))][:1]


def _gist(error: RuntimeError) -> str:
    """The last line that says something: OpenVINO puts the places in its source first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"
