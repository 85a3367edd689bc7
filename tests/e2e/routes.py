"""Every route of the API, once: what the tables of tests go through. A route without a row here fails a test."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import httpx

ID = "01a1ffff-0000-7000-8000-000000000000"
SHA256 = "0" * 64
PLACES = {"sha256": SHA256, "name": "digits"}
"""What stands for the places of an address that are no ids."""


@dataclass(frozen=True)
class Row:
    """`who`: the least that may use it: anybody, reader, writer, admin, operator. `query`, `json` and `fields`: a good
    value of each that it takes; `picture`: the name of the part that brings one. `keyed`: it takes an
    Idempotency-Key."""

    method: str
    path: str
    who: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    picture: str | None = None
    keyed: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def places(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    def address(self, **given: str) -> str:
        return re.sub(r"{(\w+)}", lambda place: given.get(place[1], PLACES.get(place[1], ID)), self.path)

    def send(self, http: httpx.Client, page: bytes, address: str | None = None, **more: Any) -> httpx.Response:
        """A request that is good but for what it names, with `more` of httpx's arguments."""
        if self.json is not None and not {"content", "files"} & more.keys():
            more = {"json": self.json, **more}
        if self.picture and not {"content", "files"} & more.keys():
            more = {"files": {self.picture: page}, "data": self.fields, **more}
        request = http.build_request(self.method, address or self.address(), **more)
        request.read()  # multipart too is then there to be compared with the answer
        return http.send(request)


PAGED = MappingProxyType({"limit": "5", "cursor": "MDFhMWZmZmYtMDAwMC03MDAwLTgwMDAtMDAwMDAwMDAwMDAw"})
JOB = {"inputs": [{"sha256": SHA256}, {"file": ID}], "model": "digits", "priority": "batch", "expires_in": 60.5,
       "metadata": {"a": ["b", {"c": 1}]}, "params": {"conf": 0.5, "iou": 0.5, "max_detections": 5}}  # fmt: skip
FIELDS = {"model": "digits", "conf": "0.5", "iou": "0.5", "max_detections": "5", "priority": "batch",
          "expires_in": "60", "file_expires_in": "60", "metadata": '{"a": 1}'}  # fmt: skip
RETRY = {"state": "failed", "model": "digits", "error_code": "undecodable_image", "metadata": {"a": 1},
          "created_after": "2026-01-01T00:00:00Z", "limit": 5, "dry_run": True, "all_tenants": False}  # fmt: skip

RECEIPTS = {**PAGED, "object": ID, "key": ID, "action": "file.read", "request_id": "order-17",
            "since": "2026-01-01T00:00:00Z", "until": "2027-01-01T00:00:00Z"}  # fmt: skip

ROWS = [
    Row("GET", "/livez", "anybody"),
    Row("GET", "/readyz", "anybody"),
    Row("GET", "/health", "anybody"),
    Row("GET", "/docs", "anybody"),
    Row("GET", "/openapi.json", "anybody"),
    Row("HEAD", "/openapi.json", "anybody"),
    Row("GET", "/docs/assets", "anybody"),
    Row("GET", "/health/detailed", "reader"),
    Row("GET", "/metrics", "reader"),
    Row("GET", "/v1/files", "reader", PAGED),
    Row("HEAD", "/v1/files/sha256:{sha256}", "reader"),
    Row("GET", "/v1/files/{file_id}", "reader"),
    Row("GET", "/v1/files/{file_id}/content", "reader"),
    Row("GET", "/v1/jobs", "reader", {**PAGED, "state": "failed", "model": "digits", "metadata": '{"a": 1}'}),
    Row("GET", "/v1/jobs/{job_id}", "reader"),
    Row("GET", "/v1/jobs/{job_id}/results", "reader", {"limit": "5", "cursor": "MQ", "format": "jsonl"}),
    Row("GET", "/v1/models", "reader"),
    Row("GET", "/v1/models/{name}", "reader"),
    Row("GET", "/v1/pools", "reader"),
    Row("POST", "/v1/files", "writer", {"expires_in": "60"}, fields={"expires_in": "60"}, picture="file", keyed=True),
    Row("POST", "/v1/files/sha256:{sha256}", "writer", {"filename": "a.png", "expires_in": "60"}, keyed=True),
    Row("PATCH", "/v1/files/{file_id}", "writer", json={"expires_at": "2031-05-01T12:00:00Z", "pinned": True}),
    Row("DELETE", "/v1/files/{file_id}", "writer", {"purge": "false"}),
    Row("DELETE", "/v1/files/sha256:{sha256}", "writer", {"purge": "true"}),
    Row("POST", "/v1/predict", "writer", fields=FIELDS, picture="image", keyed=True),
    Row("POST", "/v1/jobs", "writer", json=JOB, keyed=True),
    Row("POST", "/v1/jobs/{job_id}/cancel", "writer"),
    Row("GET", "/v1/tenant", "admin"),
    Row("PATCH", "/v1/tenant", "admin", json={"file_retention_days": 7, "job_retention_days": None}),
    Row("POST", "/v1/jobs/{job_id}/rerun", "writer", {"only": "failed"}, keyed=True),
    Row("POST", "/v1/jobs/retry", "admin", json=RETRY, keyed=True),
    Row("GET", "/v1/audit", "admin", RECEIPTS),
    Row("GET", "/v1/keys", "admin"),
    Row("POST", "/v1/keys", "admin", json={"name": "x", "role": "reader", "tenant": None}, keyed=True),
    Row("DELETE", "/v1/keys/{key_id}", "admin"),
    Row("GET", "/v1/cluster", "operator"),
    Row("POST", "/v1/models/{name}/retire", "operator", {"version": "1"}),
    *[Row("POST", f"/v1/pools/{{name}}/{action}", "operator") for action in ("pause", "drain", "resume")],
]


def rows_of(*who: str) -> list[tuple[str, str]]:
    """Method and address of what so much at least is needed for."""
    return [(row.method, row.address()) for row in ROWS if row.who in who]
