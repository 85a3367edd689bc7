"""Trains the starter model, exports it to ONNX and prints how well the exported file does on the held-out pages.

    python -m starter_model.train FOLDER     FOLDER must not exist; digits.onnx and the run's files are in it afterwards

README.md says what to install, how long it takes and which figures to expect.
"""

import argparse
import os
import shutil
from pathlib import Path

# Before the import of ultralytics, which reads them at once: nothing is looked up or installed over the network.
os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="0")

import onnx
import torch
from ultralytics import YOLO

from starter_model.pages import PAGE_SIDE, write_dataset

ARCHITECTURE = Path(__file__).with_name("digits.yaml")
SEED = 0
TRAINING_PAGES = 2000
HELD_OUT_PAGES = 400

RECIPE = {
    "epochs": 10,
    "batch": 16,
    "nbs": 16,  # The default of 64 accumulates four batches a step, and learns far slower.
    "optimizer": "AdamW",
    "lr0": 0.003,
    "cos_lr": True,
    "warmup_epochs": 1,
}
NO_AUGMENTATION = dict.fromkeys(
    ("hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr", "mosaic", "close_mosaic"), 0
)
KEPT_METADATA = ("names", "stride", "imgsz", "task", "head", "batch", "channels", "end2end", "version", "license")


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the starter model; see README.md.")
    parser.add_argument("folder", type=Path, help="a new folder for the pages, the run and digits.onnx")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: every CPU")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True)

    data = write_dataset(folder / "pages", SEED, TRAINING_PAGES, HELD_OUT_PAGES)
    weights = train(data, folder, arguments.threads)
    model = export(weights, folder / "digits.onnx")
    map50, map50_95 = measure(model, data, folder)
    print(f"{model}\nheld-out mAP50 {map50:.3f}, mAP50-95 {map50_95:.3f}, {model.stat().st_size / 1e6:.2f} MB")


def train(data: Path, folder: Path, threads: int) -> Path:
    """Trains on the CPU by the recipe and returns the path of the weights (.pt)."""
    model = YOLO(ARCHITECTURE, task="detect")
    # ultralytics leaves one CPU idle whenever it selects a device.
    model.add_callback("on_train_epoch_start", lambda _: torch.set_num_threads(threads))
    model.train(
        data=str(data),
        imgsz=PAGE_SIDE,
        device="cpu",
        cache="ram",
        workers=0,
        amp=False,
        val=False,
        plots=False,
        seed=SEED,
        project=str(folder),
        name="run",
        **RECIPE,
        **NO_AUGMENTATION,
    )
    return folder / "run" / "weights" / "last.pt"


def export(weights: Path, target: Path) -> Path:
    """Writes `target`: opset 17, input 1 x 3 x 320 x 320, raw boxes and scores as output (suppression is the caller's).

    Of ultralytics' metadata the part stays that says how to use the model; dates, paths and the machine's name go.
    """
    exported = YOLO(weights).export(format="onnx", imgsz=PAGE_SIDE, opset=17, dynamic=False, nms=False, simplify=True)
    shutil.move(exported, target)
    model = onnx.load(target)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key in KEPT_METADATA}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"description": "Wharfinger starter model: handwritten digits", **kept})
    onnx.save(model, target)
    return target


def measure(model: Path, data: Path, folder: Path) -> tuple[float, float]:
    """mAP50 and mAP50-95 of an exported model on the held-out pages."""
    figures = YOLO(model, task="detect").val(
        data=str(data), imgsz=PAGE_SIDE, batch=1, rect=False, device="cpu", plots=False, project=str(folder), name="val"
    )
    return figures.box.map50, figures.box.map


if __name__ == "__main__":
    main()
