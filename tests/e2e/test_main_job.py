"""The main job: a picture goes in, its boxes come out. By HTTP, from Python, on the command line."""

import json
import subprocess
from pathlib import Path

from PIL import Image

import starter_model
from tests.e2e import boxes
from tests.e2e.service import WHARF, Service, Up, clean_environment
from wharfinger import Client, JobState


def test_a_page_goes_in_and_its_ten_digits_come_out(up: Service, page: bytes) -> None:
    with up.client(up.new_key()) as http:
        answer = http.post("/v1/predict", files={"image": ("page.png", page)}, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    job = answer.json()
    assert (job["state"], job["progress"]) == ("succeeded", {"done": 1, "failed": 0, "total": 1})
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["Preference-Applied"] == "wait=30"
    [result] = job["results"]
    assert (result["filename"], result["width"], result["height"]) == ("page.png", 640, 480)
    boxes.assert_same(boxes.seen(result), boxes.digits())


def test_python_sees_what_http_answers(up: Service) -> None:
    with Client(up.url, up.new_key()) as client:
        job = client.predict(starter_model.PAGE, starter_model.PAGE.read_bytes())
        assert job.state is JobState.SUCCEEDED
        assert job.results is not None
        assert [result.filename for result in job.results] == ["page.png", "picture-2"]
        for result in job.results:
            boxes.assert_same(boxes.seen(result.model_dump()), boxes.digits())
        assert [listed.id for listed in client.jobs.list()] == [job.id]


def test_the_command_line_finds_the_service_and_prints_and_draws_the_boxes(up_process: Up, tmp_path: Path) -> None:
    # No server and no key are named: `wharf up` has left word where it keeps them.
    answer = wharf(up_process, "predict", str(starter_model.PAGE), "--json", "--save", str(tmp_path))
    boxes.assert_same(boxes.seen(json.loads(answer)["results"][0]), boxes.digits())
    [saved] = tmp_path.iterdir()
    with Image.open(saved) as annotated, Image.open(starter_model.PAGE) as plain:
        assert annotated.size == plain.size
        assert annotated.convert("RGB").tobytes() != plain.convert("RGB").tobytes()


def test_the_command_line_gives_back_the_bytes_that_it_uploaded(up_process: Up, page: bytes, tmp_path: Path) -> None:
    sent = json.loads(wharf(up_process, "upload", str(starter_model.PAGE), "--json"))["items"]
    target = tmp_path / "back.png"
    wharf(up_process, "files", "get", sent[0]["id"], "--output", str(target))
    assert target.read_bytes() == page


def wharf(up: Up, *arguments: str) -> str:
    environment = clean_environment({"XDG_STATE_HOME": str(up.state)})
    ended = subprocess.run([*WHARF, *arguments], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
