"""Networks of every task whose answers are lively: untrained, but with many confident and different boxes, masks and
points. No weights of others are needed for them, and they are made in a moment."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# First of all: it sets what ultralytics reads as it is imported.
pytest.importorskip("inference_worker.engines.ultralytics")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from torch import nn
    from ultralytics.nn import tasks

SIDE = 256
NAMES = {0: "circle", 1: "square", 2: "star"}
MAKERS = {
    "detect": (tasks.DetectionModel, "yolo11n.yaml"),
    "segment": (tasks.SegmentationModel, "yolo11n-seg.yaml"),
    "pose": (tasks.PoseModel, "yolo11n-pose.yaml"),
    "obb": (tasks.OBBModel, "yolo11n-obb.yaml"),
    "classify": (tasks.ClassificationModel, "yolo11n-cls.yaml"),
}
SPREAD = {"segment": 0.5, "pose": 0.02, "obb": 0.2}
"""Of the weights behind mask coefficients, keypoints and angles: as far as these stay within the picture."""


def write_pt(path: Path, task: str) -> Path:
    """A .pt of this task, as training leaves it: float16, its labels and the side of its input within."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        make, architecture = MAKERS[task]
        network = make(architecture, nc=len(NAMES), verbose=False)
        _enliven(network, SPREAD.get(task, 0.0))
    network.names, network.task = NAMES, task
    torch.save({"model": network.eval().half(), "train_args": {"imgsz": SIDE, "task": task}}, path)
    return path


def scene(width: int, height: int) -> Image.Image:
    """Coloured shapes on noise, the same at every size."""
    random = np.random.default_rng(5)
    small = random.integers(0, 90, (12, 16, 3), dtype=np.uint8)
    for _ in range(7):
        x, y = random.integers(0, 13), random.integers(0, 9)
        small[y : y + 4, x : x + 3] = random.integers(60, 256, 3)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _enliven(network: "nn.Module", spread: float) -> None:
    """Normalises every layer by what it gives for a picture, and spreads the last ones, which start near nothing."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    pixels = torch.from_numpy(np.array(scene(SIDE, SIDE))).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        network.train()(torch.stack([pixels, pixels.flip(1), pixels.flip(2)]))
    head = network.model[-1]
    for convolutions, width, bias in [("cv2", 0.3, None), ("cv3", 0.05, -0.5), ("cv4", spread, None)]:
        for branch in getattr(head, convolutions, ()):
            nn.init.normal_(branch[-1].weight, std=width)
            if bias is not None:
                nn.init.constant_(branch[-1].bias, bias)
