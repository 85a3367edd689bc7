"""Many at once, and much at once: the same bytes lie on the disk once, everybody is answered, memory stays bounded."""

import hashlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil
import pytest

from tests.e2e import boxes
from tests.e2e.service import Service, Up, until
from tests.e2e.wire import connection, head

CLIENTS = 32
MEGABYTE = 1_000_000
BIG = 300 * MEGABYTE
MOST_GROWTH = 60 * MEGABYTE


@pytest.fixture
def broker(up_process: Up) -> psutil.Process:
    return up_process.child("broker")


def test_the_same_bytes_from_32_clients_at_once_are_one_blob_and_32_files(up: Service, page: bytes) -> None:
    content = page + random.randbytes(MEGABYTE)
    digest = hashlib.sha256(content).hexdigest()
    before = up.rows()
    keys = [up.new_key() for _ in range(4)]
    together = threading.Barrier(CLIENTS)

    def send(number: int) -> httpx.Response:
        with up.client(keys[number % len(keys)]) as http:
            http.get("/v1/files")  # the connection is open before they all start
            together.wait()
            return http.post("/v1/files", files={"file": content})

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(send, range(CLIENTS)))
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert sum(answer.status_code == 201 for answer in answers) >= len(keys)
    files = [answer.json()["items"][0] for answer in answers]
    assert len({file["id"] for file in files}) == CLIENTS
    assert {file["sha256"] for file in files} == {digest}
    after = up.rows()
    assert (after["blobs"] - before["blobs"], after["files"] - before["files"]) == (1, CLIENTS)
    on_disk = list((up.volume / "blobs").rglob(digest))
    assert [path.read_bytes() for path in on_disk] == [content]
    assert on_disk[0].stat().st_mode & 0o777 == 0o444
    assert up.staged() == []


def test_32_clients_predict_at_once_and_each_gets_its_boxes(up: Service, page: bytes) -> None:
    key = up.new_key()

    def predict(number: int) -> httpx.Response:
        with up.client(key) as http:
            content = page + b"%d" % number
            return http.post("/v1/predict", files={"image": content}, headers={"Prefer": "wait=60"})

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(predict, range(CLIENTS)))
    assert [answer.status_code for answer in answers] == [200] * CLIENTS
    for answer in answers:
        [result] = answer.json()["results"]
        assert result["attempts"] == 1
        boxes.assert_same(boxes.seen(result), boxes.digits())
    assert up.staged() == []


def test_the_same_idempotency_key_from_16_clients_at_once_has_one_effect(up: Service, page: bytes) -> None:
    key, together = up.new_key(), threading.Barrier(16)

    def predict(_: int) -> httpx.Response:
        with up.client(key) as http:
            together.wait()
            return http.post("/v1/predict", files={"image": page}, headers={"Idempotency-Key": "once"})

    before = up.rows()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(predict, range(16)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    after = up.rows()
    assert (after["jobs"] - before["jobs"], after["files"] - before["files"]) == (1, 1)


def test_a_file_of_300_megabytes_costs_the_broker_a_fixed_buffer(
    up: Service, broker: psutil.Process, page: bytes
) -> None:
    chunk = random.randbytes(MEGABYTE)
    digest = hashlib.sha256(page)

    def body() -> Iterator[bytes]:
        yield page
        for _ in range(BIG // MEGABYTE):
            digest.update(chunk)
            yield chunk

    with up.client(up.new_key()) as http:
        with memory_of(broker) as sent:
            [file] = http.post("/v1/files", content=body()).json()["items"]
        assert (file["size"], file["sha256"]) == (len(page) + BIG, digest.hexdigest())
        assert sent.growth < MOST_GROWTH
        received = hashlib.sha256()
        with memory_of(broker) as read, http.stream("GET", f"/v1/files/{file['id']}/content") as answer:
            for part in answer.iter_bytes(MEGABYTE):
                received.update(part)
        assert received.digest() == digest.digest()
        assert read.growth < MOST_GROWTH


def test_a_refused_file_costs_no_memory_either(up: Service, broker: psutil.Process) -> None:
    chunk = b"no picture at all" * 60_000
    with up.client(up.new_key()) as http, memory_of(broker) as refused:
        answer = http.post("/v1/files", content=(chunk for _ in range(100)))
    assert answer.status_code == 415
    assert refused.growth < MOST_GROWTH
    assert up.staged() == []


def test_clients_that_hang_up_in_the_middle_of_a_download_leave_no_file_open(
    up_process: Up, up: Service, broker: psutil.Process, page: bytes
) -> None:
    key = up.new_key()
    with up.client(key) as http:
        [file] = http.post("/v1/files", content=page + bytes(20 * MEGABYTE)).json()["items"]
    for number in range(90):
        with connection(up.url) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # hangs up at once
            opened.sendall(head("GET", f"/v1/files/{file['id']}/content", key))
            if number % 3:
                opened.recv(number * 1000)
    until(lambda: not [each for each in broker.open_files() if file["sha256"] in each.path], "all are closed")
    assert "Bad file descriptor" not in up_process.part.output()


@dataclass
class Memory:
    """Bytes that a process held: at first, and at most."""

    first: int
    most: int

    @property
    def growth(self) -> int:
        return self.most - self.first


@contextmanager
def memory_of(process: psutil.Process) -> Iterator[Memory]:
    """Looks at it all the time while the body runs."""
    memory = Memory(process.memory_info().rss, 0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            memory.most = max(memory.most, process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield memory
    finally:
        done.set()
        watching.join()
    assert memory.most > 0
