"""What a busy service is asked, request by request, by clients that take hardly any of the machine: raw HTTP/1.1 in
one process of their own, half of them on a connection that is kept, half on one that is opened anew now and then."""

import asyncio
import hashlib
import json
import random
import re
import struct
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import uvloop

CLIENTS = 24
ANSWER_SECONDS = 60.0
REMEMBERED = 30
"""Files and jobs of each client; older ones are about to expire."""
TOLD_EVERY = 50
REQUESTS_OF_A_CONNECTION = (1, 60)

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
JSON_HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Told:
    """By the clients, since they told something last. `unforeseen`: answers that no such request should get."""

    answers: Counter[str]
    unforeseen: Sequence[str] = ()


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Clients:
    """`admin`: a key that makes others; `pipe`: told of what was answered, until so many `requests` were."""

    brokers: Sequence[str]
    admin: str
    requests: int
    seed: str
    pipe: Connection
    done: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    unforeseen: list[str] = field(default_factory=list)

    def run(self) -> None:
        uvloop.run(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(_Client(self, number).work())
        self._tell()

    def answered(self, doing: str, answer: Answer, foreseen: Sequence[int]) -> None:
        self.done += 1
        self.answers[f"{doing} {answer.status}"] += 1
        if answer.status not in foreseen:
            self.unforeseen.append(f"{doing}: {answer.status} {answer.body[:500].decode(errors='replace')}")
        if self.answers.total() >= TOLD_EVERY:
            self._tell()

    def _tell(self) -> None:
        self.pipe.send(Told(self.answers, tuple(self.unforeseen)))
        self.answers, self.unforeseen = Counter(), []


class _Client:
    """One tenant's at a time. What it remembers may have expired: then 404 and 410 are good answers."""

    def __init__(self, all_: Clients, number: int) -> None:
        self._all = all_
        self._dice = random.Random(f"{all_.seed} {number}")
        self._place = urlsplit(all_.brokers[number % len(all_.brokers)])
        self._stays = number % 2 == 0
        self._left = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._operations = 0
        self._name = f"{all_.seed}-{number}"
        self._key = ""
        self._files: deque[tuple[str, str, bytes]] = deque(maxlen=REMEMBERED)
        self._jobs: deque[str] = deque(maxlen=REMEMBERED)

    async def work(self) -> None:
        doings: Mapping[Callable[[], Any], int] = {
            self.upload: 12,
            self.upload_parts: 4,
            self.upload_known: 6,
            self.add_known: 3,
            self.ask_whether_held: 5,
            self.predict: 14,
            self.submit: 14,
            self.see_job: 12,
            self.see_results: 7,
            self.see_file: 6,
            self.see_content: 9,
            self.list_files: 2,
            self.list_jobs: 2,
            self.cancel: 3,
            self.rerun: 2,
            self.delete: 5,
            self.pin_for_a_while: 2,
            self.ask_badly: 8,
            self.look_at_health: 4,
            self.look_at_models: 1,
        }
        choices, weights = list(doings), list(doings.values())
        while self._all.done < self._all.requests:
            if not self._key or self._dice.random() < 1 / 2000:
                await self.become_another_tenant()
            else:
                [doing] = self._dice.choices(choices, weights)
                await doing()
        self._close()

    async def become_another_tenant(self) -> None:
        self._operations += 1
        wanted = {"name": "soak", "role": "writer", "tenant": f"{self._name}-{self._operations}"}
        made = await self._ask("POST /v1/keys", "/v1/keys", JSON_HEADERS, _json(wanted), 201, key=self._all.admin)
        self._key = made.json()["secret"]
        self._files.clear()
        self._jobs.clear()

    async def upload(self) -> None:
        await self._upload(self._new_picture(), 201)

    async def upload_known(self) -> None:
        if not self._files:
            return await self.upload()
        return await self._upload(self._dice.choice(self._files)[2], 200, 201)

    async def _upload(self, content: bytes, *foreseen: int) -> None:
        headers = self._operation()
        answer = await self._ask("POST /v1/files", "/v1/files", headers, content, *foreseen)
        if self._dice.random() < 0.05:  # again, as if the answer had been lost
            answer = await self._ask("POST /v1/files", "/v1/files", headers, content, 200, 201)
        self._keep(answer, content)

    async def upload_parts(self) -> None:
        contents = [self._new_picture() for _ in range(self._dice.choice((1, 2, 3)))]
        headers, body = _multipart("file", contents)
        answer = await self._ask("POST /v1/files parts", "/v1/files", {**headers, **self._operation()}, body, 201)
        self._keep(answer, *contents)

    async def add_known(self) -> None:
        if not self._files:
            return await self.upload()
        _, sha256, content = self._dice.choice(self._files)
        answer = await self._ask(
            "POST /v1/files/sha256", f"/v1/files/sha256:{sha256}", self._operation(), b"", 201, 200, 404
        )
        if answer.status != 404:
            self._files.append((answer.json()["id"], sha256, content))
        return None

    async def ask_whether_held(self) -> None:
        known = self._files and self._dice.random() < 0.5
        sha256 = self._dice.choice(self._files)[1] if known else self._dice.randbytes(32).hex()
        await self._ask("HEAD /v1/files", f"/v1/files/sha256:{sha256}", {}, b"", 200, 404, method="HEAD")

    async def predict(self) -> None:
        contents = [self._new_picture() for _ in range(self._dice.choice((1, 1, 2)))]
        headers, body = _multipart("image", contents)
        wait = self._wait()
        answer = await self._ask(
            "POST /v1/predict", "/v1/predict", {**headers, **wait, **self._operation()}, body, 200, 202
        )
        self._jobs.append(answer.json()["id"])

    async def submit(self) -> None:
        if not self._files:
            return await self.upload()
        inputs = [
            {"sha256": sha256} if self._dice.random() < 0.3 else {"file": file}
            for file, sha256, _ in (self._dice.choice(self._files) for _ in range(self._dice.choice((1, 1, 2, 5))))
        ]
        body = _json({"inputs": inputs, "priority": self._dice.choice(("interactive", "batch"))})
        headers = {**JSON_HEADERS, **self._wait(), **self._operation()}
        answer = await self._ask("POST /v1/jobs", "/v1/jobs", headers, body, 200, 202, 404)
        if answer.status != 404:
            self._jobs.append(answer.json()["id"])
        return None

    async def see_job(self) -> None:
        await self._see("GET /v1/jobs/id", f"/v1/jobs/{self._job()}", self._wait() if self._dice.random() < 0.2 else {})

    async def see_results(self) -> None:
        form = self._dice.choice(("json", "jsonl"))
        await self._see("GET /v1/jobs/id/results", f"/v1/jobs/{self._job()}/results?format={form}&limit=2", {})

    async def see_file(self) -> None:
        await self._see("GET /v1/files/id", f"/v1/files/{self._file()}", {})

    async def see_content(self) -> None:
        headers = self._dice.choice(({}, {}, {"Range": "bytes=10-99"}))
        await self._ask(
            "GET /v1/files/id/content", f"/v1/files/{self._file()}/content", headers, b"", 200, 206, 404, 410
        )

    async def list_files(self) -> None:
        await self._pages("/v1/files")

    async def list_jobs(self) -> None:
        await self._pages("/v1/jobs")

    async def _pages(self, path: str) -> None:
        page = (await self._ask(f"GET {path}", f"{path}?limit=10", {}, b"", 200)).json()
        if page.get("next_cursor"):
            await self._ask(f"GET {path}", f"{path}?limit=10&cursor={page['next_cursor']}", {}, b"", 200)

    async def cancel(self) -> None:
        await self._see("POST cancel", f"/v1/jobs/{self._job()}/cancel", {}, method="POST")

    async def rerun(self) -> None:
        answer = await self._ask(
            "POST rerun", f"/v1/jobs/{self._job()}/rerun", self._operation(), b"", 202, 200, 404, 409, 410
        )
        if answer.status in (200, 202):
            self._jobs.append(answer.json()["id"])

    async def delete(self) -> None:
        if self._files:
            self._dice.shuffle(self._files)
            file, _, _ = self._files.pop()
            await self._ask("DELETE /v1/files", f"/v1/files/{file}", {}, b"", 204, 404, method="DELETE")
        else:
            await self.upload()

    async def pin_for_a_while(self) -> None:
        file = self._file()
        for pinned in (True, False):
            await self._see(
                "PATCH /v1/files", f"/v1/files/{file}", JSON_HEADERS, _json({"pinned": pinned}), method="PATCH"
            )

    async def ask_badly(self) -> None:
        number = self._dice.randrange(10**9)
        bad: Sequence[tuple[str, str, Mapping[str, str], bytes]] = (
            ("GET", "/v1/files", {"Authorization": f"Bearer wharf_{number}"}, b""),
            ("GET", f"/no/such/{number}", {}, b""),
            ("GET", f"/v1/jobs/{number}", {}, b""),
            ("GET", "/v1/files?limit=0", {}, b""),
            ("PUT", "/v1/files", {}, b""),
            ("PROPFIND", "/v1/files", {}, b""),
            ("POST", "/v1/files", {}, b"no picture %d" % number),
            ("POST", "/v1/jobs", JSON_HEADERS, b'{"inputs": ['),
            ("POST", "/v1/jobs", JSON_HEADERS, _json({"inputs": [{"file": "x"}], f"field-{number}": 1})),
            ("POST", "/v1/jobs", JSON_HEADERS, _json({"inputs": [{"sha256": "0" * 64}], "model": f"m-{number}"})),
            ("POST", "/v1/predict", {"Content-Type": f"text/type-{number}"}, b"x"),
            ("DELETE", f"/v1/files/sha256:{number}", {}, b""),
        )
        method, path, headers, body = self._dice.choice(bad)
        await self._ask("bad", path, headers, body, *range(400, 500), method=method)

    async def look_at_health(self) -> None:
        path = self._dice.choice(("/livez", "/readyz", "/health", "/health/detailed", "/metrics"))
        await self._ask(f"GET {path}", path, {}, b"", 200)

    async def look_at_models(self) -> None:
        await self._ask("GET /v1/models", "/v1/models", {}, b"", 200)

    async def _see(
        self, doing: str, path: str, headers: Mapping[str, str], body: bytes = b"", method: str = "GET"
    ) -> None:
        await self._ask(doing, path, headers, body, 200, 404, 410, method=method)

    def _job(self) -> str:
        return self._dice.choice(self._jobs) if self._jobs else "0197b0a0-0000-7000-8000-000000000000"

    def _file(self) -> str:
        return self._dice.choice(self._files)[0] if self._files else "0197b0a0-0000-7000-8000-000000000000"

    def _keep(self, answer: Answer, *contents: bytes) -> None:
        for item, content in zip(answer.json()["items"], contents, strict=True):
            if item["sha256"] != hashlib.sha256(content).hexdigest():
                self._all.unforeseen.append(f"the answer to an upload names other bytes: {item}")
            self._files.append((item["id"], item["sha256"], content))

    def _new_picture(self) -> bytes:
        """Nearly black noise in 3 KB, for `QuickEngine`, and one in 50 has 27 KB."""
        side = 96 if self._dice.random() < 1 / 50 else 32
        noise = bytes(byte & 3 for byte in self._dice.randbytes(side * side * 3))
        return _png(side, noise)

    def _wait(self) -> dict[str, str]:
        return {"Prefer": "wait=5"} if self._dice.random() < 0.4 else {}

    def _operation(self) -> dict[str, str]:
        self._operations += 1
        return {"Idempotency-Key": f"{self._name}-{self._operations}"} if self._dice.random() < 0.5 else {}

    async def _ask(
        self,
        doing: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        *foreseen: int,
        method: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """`doing`: its first word is the method where no other is named."""
        method = method or doing.split()[0]
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._place.netloc}", f"Content-Length: {len(body)}"]
        every = {"Authorization": f"Bearer {key or self._key}", **headers}
        lines += [f"{name}: {value}" for name, value in every.items()]
        reader, writer = await self._connection()
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        async with asyncio.timeout(ANSWER_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = LENGTH.search(head)
            has_body = length is not None and method != "HEAD" and status not in (204, 304)
            answer = Answer(status, await reader.readexactly(int(length[1])) if length and has_body else b"")
        self._left -= 1
        if CLOSES.search(head) or (self._left <= 0 and not self._stays):
            self._close()
        self._all.answered(doing, answer, foreseen)
        if answer.status >= 500:
            await asyncio.sleep(1)
        return answer

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # An idle one is closed by the server after a few seconds: nobody here idles.
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._place.hostname, self._place.port)
            self._left = self._dice.randint(*REQUESTS_OF_A_CONNECTION)
        return self._streams

    def _close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _multipart(part: str, contents: Sequence[bytes]) -> tuple[Mapping[str, str], bytes]:
    boundary = "soak-b7c2"
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{part}"; filename="{number}.png"\r\n'
        "Content-Type: image/png\r\n\r\n".encode()
        + content
        + b"\r\n"
        for number, content in enumerate(contents)
    )
    return {"Content-Type": f"multipart/form-data; boundary={boundary}"}, body + f"--{boundary}--\r\n".encode()


def _png(side: int, pixels: bytes) -> bytes:
    """Not compressed. Pillow would take ten times as long."""
    rows = b"".join(b"\0" + pixels[start : start + side * 3] for start in range(0, len(pixels), side * 3))
    chunks = (
        (b"IHDR", struct.pack("!IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 0)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data)) for kind, data in chunks
    )
