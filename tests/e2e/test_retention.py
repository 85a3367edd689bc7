"""How long files are kept: said at upload, changed by PATCH, and set for a tenant."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.e2e.problems import assert_problem
from tests.e2e.service import Service

SLACK = timedelta(seconds=60)


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key("admin")) as client:
        yield client


def lasts(file: dict[str, Any], **wanted: float) -> bool:
    left = datetime.fromisoformat(file["expires_at"]) - datetime.now(UTC)
    return abs(left - timedelta(**wanted)) < SLACK


def ahead(**time: float) -> str:
    return (datetime.now(UTC) + timedelta(**time)).isoformat()


def test_every_way_to_bring_a_file_says_how_long_it_is_kept(up: Service, http: httpx.Client, page: bytes) -> None:
    hour = {"expires_in": "3600"}
    [plain] = http.post("/v1/files", content=page).json()["items"]
    [raw] = http.post("/v1/files", content=page, params=hour).json()["items"]
    [multipart] = http.post("/v1/files", files={"file": page}, data=hour).json()["items"]
    [queried] = http.post("/v1/files", files={"file": page}, params=hour).json()["items"]
    known = http.post(f"/v1/files/sha256:{plain['sha256']}", params=hour).json()
    predicted = http.post("/v1/predict", files={"image": page}, data={"file_expires_in": "3600"}).json()
    by_job = http.get(f"/v1/files/{predicted['results'][0]['file_id']}").json()
    assert lasts(plain, days=30)
    for file in (raw, multipart, queried, known, by_job):
        assert lasts(file, hours=1), file
        assert not file["pinned"]
    assert predicted["expires_at"] is None


def test_a_key_stands_for_one_time_too(http: httpx.Client, page: bytes) -> None:
    keyed = {"Idempotency-Key": uuid4().hex}
    first = http.post("/v1/files", content=page, params={"expires_in": "60"}, headers=keyed)
    assert http.post("/v1/files", content=page, params={"expires_in": "60"}, headers=keyed).json() == first.json()
    assert_problem(http.post("/v1/files", content=page, headers=keyed), 409, "idempotency_conflict")


def test_a_file_is_pinned_moved_and_let_expire(http: httpx.Client, page: bytes) -> None:
    [file] = http.post("/v1/files", content=page, params={"expires_in": "3600"}).json()["items"]
    address = f"/v1/files/{file['id']}"
    pinned = http.patch(address, json={"pinned": True})
    assert (pinned.status_code, pinned.json()) == (200, {**file, "pinned": True})
    assert http.patch(address, json={}).json() == pinned.json()
    moved = http.patch(address, json={"expires_at": "2027-05-01T12:00:00+02:00", "pinned": False}).json()
    assert (moved["expires_at"], moved["pinned"]) == ("2027-05-01T10:00:00Z", False)
    assert lasts(http.patch(address, json={"expires_at": None}).json(), days=30)
    assert http.get(address).json()["pinned"] is False


def test_a_tenants_retention_is_that_of_its_next_files(http: httpx.Client, page: bytes) -> None:
    [old] = http.post("/v1/files", content=page).json()["items"]
    changed = http.patch("/v1/tenant", json={"file_retention_days": 7})
    assert (changed.status_code, changed.json()["file_retention_days"]) == (200, 7)
    [new] = http.post("/v1/files", content=page).json()["items"]
    assert lasts(new, days=7)
    assert http.get(f"/v1/files/{old['id']}").json() == old
    assert http.patch("/v1/tenant", json={"job_retention_days": 3650}).json()["file_retention_days"] == 7
    assert http.patch("/v1/tenant", json={"file_retention_days": None}).json() == http.get("/v1/tenant").json()
    [after] = http.post("/v1/files", content=page).json()["items"]
    assert lasts(after, days=30)


WRONG_SECONDS = ["0", "-1", "nan", "inf", "1e999", "soon", "", "315360001", "9" * 5000, "\0"]


@pytest.mark.parametrize("seconds", WRONG_SECONDS)
def test_seconds_that_are_none_are_refused_and_leave_nothing(
    up: Service, http: httpx.Client, page: bytes, seconds: str
) -> None:
    [file] = http.post("/v1/files", content=page).json()["items"]
    before = up.traces()
    for answer in (
        http.post("/v1/files", content=page, params={"expires_in": seconds}),
        http.post("/v1/files", files={"file": page}, data={"expires_in": seconds}),
        http.post(f"/v1/files/sha256:{file['sha256']}", params={"expires_in": seconds}),
    ):
        assert_problem(answer, 422, "invalid_request", "expires_in")
    predicted = http.post("/v1/predict", files={"image": page}, data={"file_expires_in": seconds})
    assert_problem(predicted, 422, "invalid_request", "file_expires_in")
    assert up.traces() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("expires_at", text) for text in ("2027-05-01", "2027-05-01T12:00:00", "2027-05-01 12:00:00Z", "tomorrow",
                                            "2027-13-01T12:00:00Z", "2027-05-01T12:00:00+99:00", "1893456000", "",
                                            "2020-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00",
                                            "2200-01-01T00:00:00Z", "2027-05-01T12:00:00Z\0", "9" * 5000)],
        *[("expires_at", value) for value in (1893456000, 1.5, True, [], {})],
        *[("pinned", value) for value in (None, 1, "true", "yes", [], {})],
        *[(field, True) for field in ("filename", "sha256", "deleted_at", "no_such_field")],
    ],
)  # fmt: skip
def test_a_patch_of_a_file_that_is_wrong_changes_nothing(
    http: httpx.Client, page: bytes, field: str, value: object
) -> None:
    [file] = http.post("/v1/files", content=page).json()["items"]
    answer = http.patch(f"/v1/files/{file['id']}", json={field: value})
    assert_problem(answer, 422, "invalid_request", field)
    assert http.get(f"/v1/files/{file['id']}").json() == file


@pytest.mark.parametrize("body", ["", "{", "null", "[]", '"pinned"', '{"pinned": true', "\0"])
@pytest.mark.parametrize("address", ["/v1/files/01a1ffff-0000-7000-8000-000000000000", "/v1/tenant"])
def test_a_patch_that_is_no_object(http: httpx.Client, address: str, body: str) -> None:
    assert_problem(http.patch(address, content=body), 422, "invalid_request")


@pytest.mark.parametrize("value", [0, -1, 3651, 10**12, 1.5, "7", True, [], {}])
@pytest.mark.parametrize("field", ["file_retention_days", "job_retention_days"])
def test_a_retention_that_is_wrong_changes_nothing(http: httpx.Client, field: str, value: object) -> None:
    before = http.get("/v1/tenant").json()
    assert_problem(http.patch("/v1/tenant", json={field: value}), 422, "invalid_request", field)
    assert_problem(http.patch("/v1/tenant", json={"name": "another"}), 422, "invalid_request", "name")
    assert http.get("/v1/tenant").json() == before


def test_an_expired_deleted_or_unknown_file_is_not_changed(up: Service, http: httpx.Client, page: bytes) -> None:
    files = [http.post("/v1/files", content=page).json()["items"][0]["id"] for _ in range(2)]
    up.ask("UPDATE wharf.files SET expires_at = now() - interval '1 s' WHERE id = %s RETURNING id", files[0])
    http.delete(f"/v1/files/{files[1]}")
    for file in (*files, str(uuid4()), "not-an-id"):
        assert_problem(http.patch(f"/v1/files/{file}", json={"pinned": True}), 404, "not_found")
    assert_problem(http.get(f"/v1/files/{files[0]}"), 404, "not_found")
