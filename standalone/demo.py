"""`make demo`: the whole service started, one real picture sent through it, its boxes shown, everything stopped."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

import starter_model
from wharfinger.discovery import KEY_FILE

FOLDER = Path("demo")
START_SECONDS = 120


def demo(
    model: Annotated[Path, typer.Option(help="An .onnx or OpenVINO .xml file")] = starter_model.MODEL,
    image: Annotated[Path, typer.Option(help="The picture to look at")] = starter_model.PAGE,
) -> None:
    """Starts the service in the folder demo/, infers one picture and saves it with its boxes."""
    for path in (model, image):
        if not path.is_file():
            sys.exit(f"make demo: there is no file {path}.")
    FOLDER.mkdir(exist_ok=True)
    with _service(model) as environment:
        print(f"Looking at {image} with {model.stem} ...", flush=True)  # noqa: T201
        predict = [sys.executable, "-m", "wharfinger", "predict", str(image), "--save", str(FOLDER)]
        status = subprocess.run(predict, env=environment, check=False).returncode
    sys.exit(status)


@contextmanager
def _service(model: Path) -> Iterator[dict[str, str]]:
    """`wharf up` on a free port, its log in a file; gives the environment in which `wharf` finds it."""
    # Not the database or the server that this shell's environment may name: the demo touches its own folder only.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WHARF_")}
    port = _free_port()
    data, log = FOLDER / "data", FOLDER / "up.log"
    print(f"Starting the service on port {port} (log: {log}) ...", flush=True)  # noqa: T201
    command = [sys.executable, "-m", "wharfinger", "up", "--data", str(data), "--port", str(port), "--model"]
    with log.open("w") as output:
        # In a session of its own: Ctrl-C comes to us, and we end it.
        up = subprocess.Popen(
            [*command, str(model)], env=clean, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(up, log)
        yield {
            **clean,
            "WHARF_SERVER": f"http://127.0.0.1:{port}",
            "WHARF_API_KEY_FILE": str(data / KEY_FILE),
        }
    finally:
        up.terminate()
        up.wait()


def _wait_until_ready(up: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "Wharfinger is ready" not in log.read_text():
        if up.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"The service did not start:\n{log.read_text()}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    typer.run(demo)
