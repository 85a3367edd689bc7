"""/v1/files: uploaded, listed, read, known by their bytes, deleted."""

import hashlib
import io
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from custody.wire import File
from tests.e2e.problems import assert_problem
from tests.e2e.service import Service

UNKNOWN_SHA256 = "0" * 64


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    """A writer of a tenant that holds nothing yet."""
    with up.client(up.new_key()) as client:
        yield client


def test_a_multipart_upload_answers_one_file_a_part_in_their_order(http: httpx.Client, page: bytes) -> None:
    parts = [("file", ("first.png", page)), ("file", ("second.jpg", picture(30, 20)))]
    answer = http.post("/v1/files", files=parts)
    assert answer.status_code == 201
    first, second = answer.json()["items"]
    assert set(first) == set(File.model_fields)
    assert File.model_validate(first).created_at.utcoffset().total_seconds() == 0
    assert first["sha256"] == hashlib.sha256(page).hexdigest()
    assert (first["filename"], first["media_type"], first["size"]) == ("first.png", "image/png", len(page))
    assert (first["width"], first["height"], first["orientation"]) == (640, 480, 1)
    assert (second["filename"], second["media_type"]) == ("second.jpg", "image/jpeg")
    assert (second["width"], second["height"], second["pinned"]) == (30, 20, False)


def test_a_raw_body_is_a_file_whatever_its_content_type_says(http: httpx.Client, page: bytes) -> None:
    headers = {"Content-Type": "text/plain", "Content-Disposition": 'attachment; filename="raw.png"'}
    answer = http.post("/v1/files", content=page, headers=headers)
    assert answer.status_code == 201
    [file] = answer.json()["items"]
    assert (file["media_type"], file["filename"]) == ("image/png", "raw.png")
    assert answer.headers["Location"] == f"/v1/files/{file['id']}"
    assert http.get(answer.headers["Location"]).json() == file


def test_an_upload_answers_200_only_where_the_tenant_held_every_byte(http: httpx.Client, page: bytes) -> None:
    assert http.post("/v1/files", content=page).status_code == 201
    again = http.post("/v1/files", content=page)
    assert again.status_code == 200
    mixed = http.post("/v1/files", files=[("file", page), ("file", picture(31, 20))])
    assert mixed.status_code == 201
    assert len({file["id"] for file in again.json()["items"] + mixed.json()["items"]}) == 3


def test_head_by_sha256_tells_what_the_tenant_holds(http: httpx.Client, page: bytes) -> None:
    address = f"/v1/files/sha256:{hashlib.sha256(page).hexdigest()}"
    assert http.head(address).status_code == 404
    [file] = http.post("/v1/files", content=page).json()["items"]
    assert http.head(address).status_code == 200
    http.delete(f"/v1/files/{file['id']}")
    assert http.head(address).status_code == 404


def test_known_bytes_become_a_new_file_without_being_sent(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", files={"file": ("page.png", page)}).json()["items"]
    answer = http.post(f"/v1/files/sha256:{file['sha256']}", params={"filename": "copy.png"})
    assert answer.status_code == 201
    copy = answer.json()
    assert answer.headers["Location"] == f"/v1/files/{copy['id']}"
    different = {name for name in file if copy[name] != file[name]}
    assert different == {"id", "filename", "created_at", "expires_at"}
    assert copy["filename"] == "copy.png"
    unnamed = http.post(f"/v1/files/sha256:{file['sha256']}").json()
    assert unnamed["filename"] in ("page.png", "copy.png")


def test_unknown_bytes_become_no_file(http: httpx.Client) -> None:
    assert_problem(http.post(f"/v1/files/sha256:{UNKNOWN_SHA256}"), 404, "not_found")
    assert_problem(http.post("/v1/files/sha256:XYZ"), 422, "invalid_request", "sha256")


def test_the_list_has_every_file_once_newest_first(http: httpx.Client, page: bytes) -> None:
    ids = [http.post("/v1/files", content=page).json()["items"][0]["id"] for _ in range(5)]
    listed, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        answer = http.get("/v1/files", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        listed += [file["id"] for file in answer["items"]]
        cursor, pages = answer["next_cursor"], pages + 1
    assert listed == ids[::-1]
    assert pages == 3


def test_content_is_byte_identical_and_cannot_be_taken_for_a_page(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", content=page).json()["items"]
    answer = http.get(f"/v1/files/{file['id']}/content")
    assert answer.content == page
    assert answer.headers["ETag"] == f'"{file["sha256"]}"'
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == "attachment"


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=100-", 100, -1),
        ("bytes=-7", -7, -1),
        ("bytes=5-99999999999", 5, -1),
        ("bytes=-99999999999", 0, -1),
        ("bytes=0-1048576", 0, 1_048_576),
        ("bytes=1048575-2097153", 1_048_575, 2_097_153),
    ],
)
def test_a_range_is_answered_with_exactly_its_bytes(
    http: httpx.Client, page: bytes, asked: str, first: int, last: int
) -> None:
    # Longer than the chunks in which files are read.
    content = page + bytes(range(256)) * 12_000
    [file] = http.post("/v1/files", content=content).json()["items"]
    size = len(content)
    start, stop = first % size, last % size + 1
    answer = http.get(f"/v1/files/{file['id']}/content", headers={"Range": asked})
    assert answer.content == content[start:stop]
    if (start, stop) == (0, size):
        assert answer.status_code == 200
    else:
        assert answer.status_code == 206
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"


def test_a_range_outside_the_file_is_416(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", content=page).json()["items"]
    address = f"/v1/files/{file['id']}/content"
    beyond = http.get(address, headers={"Range": f"bytes={len(page)}-"})
    assert_problem(beyond, 416, "range_not_satisfiable", "Range")
    assert beyond.headers["Content-Range"] == f"bytes */{len(page)}"
    for ignored in ("bytes=abc", "bytes=5-2", "lines=1-2", "bytes=0-1,5-6", f"bytes=0-{'9' * 5000}"):
        assert http.get(address, headers={"Range": ignored}).content == page


def test_content_that_the_client_has_is_not_sent_again(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", content=page).json()["items"]
    address, etag = f"/v1/files/{file['id']}/content", f'"{file["sha256"]}"'
    held = http.get(address, headers={"If-None-Match": etag})
    assert (held.status_code, held.content, held.headers["ETag"]) == (304, b"", etag)
    assert http.get(address, headers={"If-None-Match": f'"{UNKNOWN_SHA256}"'}).content == page
    changed = http.get(address, headers={"Range": "bytes=0-4", "If-Range": f'"{UNKNOWN_SHA256}"'})
    assert (changed.status_code, changed.content) == (200, page)
    assert http.get(address, headers={"Range": "bytes=0-4", "If-Range": etag}).content == page[:5]


def test_a_deleted_file_is_gone_and_its_namesake_in_bytes_stays(http: httpx.Client, page: bytes) -> None:
    ids = [http.post("/v1/files", content=page).json()["items"][0]["id"] for _ in range(2)]
    answer = http.delete(f"/v1/files/{ids[0]}")
    assert (answer.status_code, answer.content) == (204, b"")
    for gone in (
        http.get(f"/v1/files/{ids[0]}"),
        http.get(f"/v1/files/{ids[0]}/content"),
        http.delete(f"/v1/files/{ids[0]}"),
        http.post("/v1/jobs", json={"inputs": [{"file": ids[0]}]}),
    ):
        assert_problem(gone, 404, "not_found")
    assert [file["id"] for file in http.get("/v1/files").json()["items"]] == [ids[1]]
    assert http.get(f"/v1/files/{ids[1]}/content").content == page


def picture(width: int, height: int) -> bytes:
    drawn = io.BytesIO()
    Image.effect_noise((width, height), 40).save(drawn, "JPEG")
    return drawn.getvalue()
