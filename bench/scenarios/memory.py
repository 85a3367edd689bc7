"""What large files cost in memory: the broker's while it takes them, everybody's for a picture that is looked at."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.fleet import Fleet, fleet, per_thing
from bench.large_file import ROOM, LargeFile
from bench.load import closed_loop
from bench.peaks import peak_mb, reset_peak
from bench.peer import PEERS, Running, enter_all, expected_of
from bench.peers import ENGINES
from bench.pictures import model_and_photo, phone_photo, with_tail
from bench.request import Request, predict
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario, program
from tests.support.rabbitmq import RabbitMQ

MB = 1_000_000
SMALL_MB = 10
SHARE = 8
PICTURES = 10
CONNECTIONS = 2
BROKER = "broker peak MB"


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    program("wrk")
    model, photo = model_and_photo()
    picture = with_tail(phone_photo(photo), SMALL_MB * MB)
    expected = expected_of(model, photo, whole=False)
    with ExitStack() as stack:
        settings = {"WHARF_SLOTS": str(ENGINES)}
        ours = stack.enter_context(fleet("amqp", folder / "amqp", model, settings, broker_settings=ROOM))
        limit, *contenders = [
            Contender(f"upload of {mb:,} MB", partial(_upload, ours, LargeFile(folder / f"{mb}-mb", mb * MB)))
            for mb in (SMALL_MB, max(SMALL_MB + 1, size // SHARE), size)
        ]
        request = predict(ours.service, picture, wait=True)
        contenders.append(Contender(f"pictures of {SMALL_MB} MB", partial(_look, ours, request)))
        queued = [peer for peer in PEERS if peer.queued]
        peers, left_out = enter_all(stack, queued, folder, model, photo, expected, whole=False)
        for running in peers:
            request = running.peer.ask(picture)
            contenders.append(Contender(f"{running.peer.name}, of {SMALL_MB} MB", partial(_look, running, request)))
        yield Contest(contenders, limit, added=[BROKER], left_out=left_out)


def _upload(ours: Fleet, file: LargeFile) -> Window:
    assert ours.broker
    reset_peak(ours.broker.pid)
    seconds = file.upload(ours)
    return Window(file.bytes / MB / seconds, {BROKER: peak_mb(ours.broker.pid)})


def _look(served: Fleet | Running, request: Request) -> Window:
    """Pictures through everything, and what went through RabbitMQ for each."""
    assert served.rabbitmq
    pids = _pids(served)
    for pid in pids.values():
        reset_peak(pid)
    before = _octets(served.rabbitmq)
    load = closed_loop(served.url, request, PICTURES, CONNECTIONS)
    traffic = per_thing(before, _octets(served.rabbitmq), PICTURES)
    peaks = {f"{role} peak MB": peak_mb(pid) for role, pid in pids.items()}
    return Window(PICTURES * SMALL_MB / load.seconds, {**peaks, **traffic})


def _pids(served: Fleet | Running) -> Mapping[str, int]:
    if isinstance(served, Running):
        return {"peer": served.pid, **served.servers}
    assert served.broker
    assert served.rabbitmq
    [worker] = served.workers
    return {"broker": served.broker.pid, "worker": worker.pid, "RabbitMQ": served.rabbitmq.pid}


def _octets(rabbitmq: RabbitMQ) -> Mapping[str, float]:
    """Of all connections that there are; nobody leaves during a window."""
    lines = re.findall(r"^(\d+)\t(\d+)$", rabbitmq.ctl("list_connections", "recv_oct", "send_oct"), re.MULTILINE)
    return {
        "bytes into RabbitMQ": float(sum(int(received) for received, _ in lines)),
        "bytes out of RabbitMQ": float(sum(int(sent) for _, sent in lines)),
    }


SCENARIO = Scenario(
    "i",
    "Peaks of memory: uploads of 10 MB, of an eighth of so many MB and of all of them; pictures of 10 MB",
    "MB",
    size=4096,
    open=_open,
)
