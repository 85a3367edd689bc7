"""An HTTP request about a picture: the same bytes each time, but for a number that makes the picture another one."""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.pictures import numbered, numbered_for_base64
from tests.e2e.service import Service

BOUNDARY = "bench-b7c2"
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Request:
    """`path` and `body` have `bench.pictures.NUMBER` where the number goes. `status` and `words` are a good answer's:
    its status, and something that is in its body."""

    path: str
    body: bytes
    status: int = 200
    words: str = ""
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)

    def written(self, url: str) -> bytes:
        head = (
            f"{self.method} {self.path} HTTP/1.1",
            f"Host: {urlsplit(url).netloc}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            f"Content-Length: {len(self.body)}",
        )
        return "\r\n".join([*head, "", ""]).encode() + self.body


def raw(path: str, jpeg: bytes) -> Request:
    return Request(path, numbered(jpeg), headers={"Content-Type": "image/jpeg"})


def open_inference(model: str, jpeg: bytes) -> Request:
    """The Open Inference Protocol's: JSON with the picture as base64."""
    picture = b64encode(numbered_for_base64(jpeg)).decode()
    tensor = {
        "name": "picture",
        "shape": [1, 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [picture],
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    return Request(f"/v2/models/{model}/infer", body, headers={"Content-Type": "application/json"})


def predict(service: Service, jpeg: bytes, *, wait: bool) -> Request:
    """Ours. `wait`: for the result, else only until it is accepted."""
    part = 'Content-Disposition: form-data; name="image"; filename="picture.jpg"\r\nContent-Type: image/jpeg'
    return Request(
        "/v1/predict",
        f"--{BOUNDARY}\r\n{part}\r\n\r\n".encode() + numbered(jpeg) + f"\r\n--{BOUNDARY}--\r\n".encode(),
        status=200 if wait else 202,
        words='"state":"succeeded"' if wait else '"id":',
        headers={
            "Authorization": f"Bearer {service.key}",
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
            **({"Prefer": f"wait={WAIT_SECONDS}"} if wait else {}),
        },
    )
