"""The model that is always there, and a page of digits to try it on. Paths only: nothing heavy is imported."""

from pathlib import Path

MODEL = Path(__file__).with_name("digits.onnx")
PAGE = Path(__file__).with_name("page.png")
