"""From a .pt to what the openvino engine runs: `python -m inference_worker.engines.export MODEL.pt FOLDER`.

A process of its own, for what ultralytics and torch hold and print. It writes FOLDER/<stem>.onnx and, as a second form
of the same network, FOLDER/<stem>_openvino_model/. Where it cannot, it says why on standard output, and ends with 1.
"""

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from inference_worker.engines import EngineError
from inference_worker.engines.ultralytics import plain_link


def main() -> None:
    # What libraries print is not an answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    try:
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    except EngineError as error:
        answer.write(str(error))
        sys.exit(1)


def export(model_path: Path, folder: Path) -> None:
    """Batch 1, float32, the size that the model was trained with. The same .pt gives the same ONNX, byte by byte, as
    long as ultralytics and torch stay the same. Raises `EngineError`."""
    from ultralytics import YOLO

    link = plain_link(model_path)
    try:
        network = YOLO(str(link))
        # The simplifier is a package more, and OpenVINO does what it does.
        onnx = Path(network.export(format="onnx", simplify=False, device="cpu", verbose=False))
        ir = Path(network.export(format="openvino", device="cpu", verbose=False))
        _forget_the_date(onnx)
    except Exception as error:
        raise EngineError(
            f"{model_path} cannot be exported. It has to be a .pt that ultralytics trained. ultralytics says: "
            f"{str(error).replace(str(link), str(model_path))}"
        ) from error
    shutil.copyfile(onnx, folder / f"{model_path.stem}.onnx")
    target = folder / f"{model_path.stem}_openvino_model"
    target.mkdir()
    for part in sorted(ir.iterdir()):
        shutil.copyfile(part, target / (part.name if part.suffix == ".yaml" else f"{model_path.stem}{part.suffix}"))


def _forget_the_date(path: Path) -> None:
    import onnx

    model: Any = onnx.load(path)
    kept = [each for each in model.metadata_props if each.key != "date"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, path)


if __name__ == "__main__":
    main()
