"""Pictures of every kind that were spoiled, or are something else as well: taken for what they are, or refused; in a
job each fails alone."""

from collections.abc import Iterator
from random import Random

import httpx
import pytest

from tests.e2e import boxes
from tests.e2e.problems import code_of
from tests.e2e.service import Service
from tests.e2e.test_bad_files import POLYGLOTS
from tests.support.mutations import KINDS, drawn, spoiled

EACH = 6


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key()) as client:
        yield client


@pytest.mark.parametrize("kind", POLYGLOTS)
def test_a_picture_that_is_something_else_as_well_is_handed_out_as_a_picture_alone(
    http: httpx.Client, kind: str
) -> None:
    [file] = http.post("/v1/files", files={"file": ("a.html", POLYGLOTS[kind], "text/html")}).json()["items"]
    content = http.get(f"/v1/files/{file['id']}/content")
    assert content.content == POLYGLOTS[kind]
    assert content.headers["Content-Type"] == file["media_type"]
    assert file["media_type"].startswith("image/")
    assert content.headers["X-Content-Type-Options"] == "nosniff"
    assert content.headers["Content-Disposition"] == "attachment"


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_picture_costs_one_task_and_its_neighbours_succeed(
    http: httpx.Client, page: bytes, kind: str
) -> None:
    chance = Random(f"{kind} of the whole service")
    accepted = []
    for _ in range(EACH * 5):
        content = spoiled(drawn(kind), drawn("png"), chance)
        answer = http.post("/v1/files", content=content)
        if answer.is_success:
            accepted += [item["sha256"] for item in answer.json()["items"]]
        else:
            assert code_of(answer) in ("unsupported_media_type", "damaged_image", "too_many_pixels", "empty_file")
        if len(accepted) == EACH:
            break
    assert accepted
    [good] = http.post("/v1/files", content=page).json()["items"]
    inputs = [{"sha256": sha256} for spoilt in accepted for sha256 in (spoilt, good["sha256"])]
    job = http.post("/v1/jobs", json={"inputs": inputs, "cache": False}, headers={"Prefer": "wait=60"}).json()
    for number, result in enumerate(job["results"]):
        if number % 2:
            assert (result["state"], result["attempts"]) == ("succeeded", 1)
            boxes.assert_same(boxes.seen(result), boxes.digits())
        elif result["state"] != "succeeded":
            assert (result["state"], result["error"]["code"]) in (
                ("unprocessable", "undecodable_image"),
                ("unprocessable", "too_many_pixels"),
            ), result
