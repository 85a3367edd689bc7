"""What everybody begins with: `YOLO(...).predict(path)` in a loop. Run by the interpreter of an environment that has
ultralytics."""

import argparse
from itertools import cycle
from pathlib import Path

from ultralytics import YOLO

from bench.loop import answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stock_ultralytics")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    model = YOLO(arguments.model)
    paths = cycle(sorted(arguments.folder.iterdir()))
    answer(lambda: model.predict(next(paths), verbose=False))


if __name__ == "__main__":
    main()
