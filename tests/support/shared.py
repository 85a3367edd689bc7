"""The real model and photos that lie beside the repository, where they do: their licence keeps them out of it."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"
YOLO11N = SHARED / "models" / "yolo11n.onnx"
BUS = SHARED / "images" / "bus.jpg"
ZIDANE = SHARED / "images" / "zidane.jpg"

needs_shared = pytest.mark.skipif(not YOLO11N.is_file(), reason=f"no real model at {YOLO11N}")
