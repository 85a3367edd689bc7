"""What clients call their files is shown and never opened: the last component, printable characters, 255 at most."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.service import Service

HOSTILE = {
    "../../etc/passwd": "passwd",
    "/etc/passwd": "passwd",
    "..\\..\\windows\\win.ini": "win.ini",
    "C:\\photos\\a.jpg": "a.jpg",
    "..": None,
    ".": None,
    "": None,
    "a/": None,
    "   ": None,
    "a\0b.jpg": "ab.jpg",
    "\0": None,
    "a\r\nSet-Cookie: x=1": "aSet-Cookie: x=1",
    "\x1b[31mred\x1b[0m": "[31mred[0m",
    "evil\u202egpj.exe": "evilgpj.exe",
    "\u2066a\u2069\ufeff": "a",
    "x" * 5000: "x" * 255,
    "ä" * 4000: "ä" * 255,
    "%2e%2e%2fetc%2fpasswd": "%2e%2e%2fetc%2fpasswd",
    "%00.jpg": "%00.jpg",
    'a".jpg; filename="b': 'a".jpg; filename="b',
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "$(reboot).jpg": "$(reboot).jpg",
    "'; DROP TABLE wharf.files; --": "'; DROP TABLE wharf.files; --",
    "日本 photo 📷.jpg": "日本 photo 📷.jpg",
}


@pytest.fixture
def http(up: Service) -> Iterator[httpx.Client]:
    with up.client(up.new_key()) as client:
        yield client


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:30]))
def test_a_hostile_name_is_harmless_wherever_it_is_shown(http: httpx.Client, page: bytes, name: str) -> None:
    [file] = http.post("/v1/files", content=multipart("file", name, page), headers=MULTIPART).json()["items"]
    assert file["filename"] == HOSTILE[name]
    known = http.post(f"/v1/files/sha256:{file['sha256']}?filename={quote(name, safe='')}").json()
    assert known["filename"] == (HOSTILE[name] or file["filename"])
    content = http.get(f"/v1/files/{file['id']}/content")
    assert content.content == page
    assert content.headers["Content-Disposition"] == "attachment"
    assert "Set-Cookie" not in content.headers
    answer = http.post("/v1/predict", content=multipart("image", name, page), headers=MULTIPART)
    assert [result["filename"] for result in answer.json()["results"]] == [HOSTILE[name]]


def test_names_leave_no_trace_on_the_disk(up: Service, http: httpx.Client, page: bytes) -> None:
    http.post("/v1/files", content=multipart("file", "../escaped.png", page), headers=MULTIPART)
    assert not list(up.volume.parent.rglob("*escaped*"))
    assert not Path("/escaped.png").exists()


def test_the_name_of_a_raw_body_is_cleaned_too(http: httpx.Client, page: bytes) -> None:
    headers = {"Content-Disposition": 'attachment; filename="../../etc/x\x85\t.png"'.encode("latin-1")}
    [file] = http.post("/v1/files", content=page, headers=headers).json()["items"]
    assert file["filename"] == "x.png"


MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}


def multipart(part: str, name: str, content: bytes) -> bytes:
    """As browsers write it: quotes and line breaks percent-encoded, everything else as it is."""
    written = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    head = f'--b\r\nContent-Disposition: form-data; name="{part}"; filename="{written}"\r\n\r\n'
    return head.encode() + content + b"\r\n--b--\r\n"
