"""`wharf models add` beside a running `wharf up`, which it finds by itself."""

import subprocess
from pathlib import Path

import starter_model
from tests.e2e.service import WHARF, Up, clean_environment


def test_a_model_is_added_to_the_service_of_this_machine(tmp_path: Path) -> None:
    up = Up(tmp_path)
    command = [*WHARF, "models", "add", str(starter_model.MODEL), "--name", "more-digits"]
    environment = clean_environment({"XDG_STATE_HOME": str(up.state)})
    try:
        service = up.start()
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("more-digits version 1: detect, 10 classes, input 320 x 320\n")
        with service.client() as client:
            model = client.get("/v1/models/more-digits").json()
        [version] = model["versions"]
        assert f"digest {version['digest']}\n" in ended.stdout
        assert list((service.volume / "models" / "more-digits").iterdir()) != []
    finally:
        up.part.stop()
    late = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert late.returncode == 1
    assert "no service runs in" in late.stderr
