"""The peers that we are held against: how each is started and asked, and that it answers as the bare engine does."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from bench.cpu import tree_seconds
from bench.detector import Detections, Detector, environment
from bench.environment import UnavailableError, python_of
from bench.fleet import ROOMY, new_postgres, postmaster_of
from bench.load import measured
from bench.machine import ROOT
from bench.peers import ENGINES
from bench.request import Request, open_inference, raw
from bench.rounds import GivenUpError, Window
from inference_worker.cpus import granted_cpus
from tests.e2e.service import Part, free_port
from tests.support.rabbitmq import RabbitMQ

START_SECONDS = 120
LEAST_OVERLAP = 0.99
LONGEST_REASON = 500
WARM_UP = 40
WARM_UP_CONNECTIONS = 8


@dataclass(frozen=True)
class Peer:
    """`module`: of `bench.peers`; `pins`: of `bench/environments`; `ask`: a request about a JPEG; `found`: an answer's
    detections; `queued`: it wants a RabbitMQ and a Postgres."""

    name: str
    module: str
    pins: str
    ask: Callable[[bytes], Request] = lambda jpeg: raw("/detect", jpeg)
    found: Callable[[Any], Detections] = lambda answer: answer
    settings: Mapping[str, str] = field(default_factory=dict)
    queued: bool = False


def _tensor(answer: Any) -> Detections:
    found: Detections = json.loads(answer["outputs"][0]["data"][0])
    return found


PEERS: Sequence[Peer] = (
    Peer("BentoML", "bentoml", "bentoml"),
    Peer("FastAPI, 2 processes", "fastapi", "fastapi", settings={"BENCH_PROCESSES": "2"}),
    Peer("FastAPI, 1 process", "fastapi", "fastapi", settings={"BENCH_PROCESSES": "1"}),
    Peer("LitServe", "litserve", "litserve"),
    Peer("MLServer", "mlserver", "mlserver", lambda jpeg: open_inference("detector", jpeg), _tensor),
    Peer("Ray Serve", "ray", "ray"),
    Peer("bytes in messages", "messages", "messages", queued=True),
)


@dataclass(frozen=True)
class Running:
    """A peer that answers rightly and is warm. `servers`: pids of what it was given beside its own processes, by role;
    `rabbitmq` is one of them."""

    peer: Peer
    url: str
    pid: int
    servers: Mapping[str, int]
    rabbitmq: RabbitMQ | None

    def measured(self, request: Request, requests: int, connections: int) -> Window:
        """See `bench.load.measured`. Raises `GivenUpError` where an answer is not what it should be."""
        try:
            return measured(self, request, requests, connections)
        except RuntimeError as error:
            raise GivenUpError(str(error)[-LONGEST_REASON:]) from error

    def cpu_seconds(self) -> Mapping[str, float]:
        return {role: tree_seconds(pid) for role, pid in {"peer": self.pid, **self.servers}.items()}


class WrongAnswerError(Exception):
    """A peer does not find what the bare engine finds."""


def enter_all(
    stack: ExitStack,
    peers: Iterable[Peer],
    folder: Path,
    model: Path,
    jpeg: bytes,
    expected: Detections,
    *,
    whole: bool,
) -> tuple[Sequence[Running], dict[str, str]]:
    """Those that run, until the stack is closed; and why the others do not, by name. See `running`."""
    entered, left_out = [], {}
    for number, peer in enumerate(peers):
        try:
            # Short: Ray puts sockets below it, whose paths may have 107 bytes.
            place = folder / f"peer{number}"
            entered.append(stack.enter_context(running(peer, place, model, jpeg, expected, whole=whole)))
        except (UnavailableError, AssertionError, WrongAnswerError, GivenUpError) as error:
            left_out[peer.name] = str(error)[-LONGEST_REASON:]
    return entered, left_out


@contextmanager
def running(
    peer: Peer, folder: Path, model: Path, jpeg: bytes, expected: Detections, *, whole: bool
) -> Iterator[Running]:
    """Raises `UnavailableError` where it cannot be installed, `AssertionError` where it does not start,
    `WrongAnswerError` where it finds something else than `expected` in the JPEG, and `GivenUpError` where it does not
    stand a few clients. `whole`: see `Detector`."""
    python = python_of(peer.pins)
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        port = free_port()
        settings = {
            **environment(model, max(1, granted_cpus() // ENGINES), whole=whole),
            **peer.settings,
            "PYTHONPATH": str(ROOT),
            "BENCH_FOLDER": str(folder),
            "BENCH_SECOND_PORT": str(free_port()),
            "BENTOML_HOME": str(folder),
            "BENTOML_DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        servers: dict[str, int] = {}
        rabbitmq = None
        if peer.queued:
            rabbitmq = stack.enter_context(RabbitMQ(folder / "rabbitmq", settings=ROOMY))
            postgres = stack.enter_context(new_postgres(folder))
            servers = {"RabbitMQ": rabbitmq.pid, "Postgres": postmaster_of(postgres.url())}
            settings |= {"BENCH_AMQP_URL": rabbitmq.url(), "BENCH_RESULTS_URL": _for_sqlalchemy(postgres.url())}
        part = Part(
            peer.name, (str(port),), settings, folder / "log", program=(str(python), "-m", f"bench.peers.{peer.module}")
        )
        stack.callback(part.stop)
        part.start()
        url = f"http://127.0.0.1:{port}"
        part.until(lambda: _answers(url, peer.ask(jpeg)), START_SECONDS)
        found = peer.found(_answer(url, peer.ask(jpeg)).json())
        if not alike(found, expected):
            raise WrongAnswerError(f"{peer.name} found {found} where the bare engine finds {expected}.")
        running = Running(peer, url, part.pid, servers, rabbitmq)
        running.measured(peer.ask(jpeg), WARM_UP, WARM_UP_CONNECTIONS)
        yield running


def expected_of(model: Path, jpeg: bytes, *, whole: bool) -> Detections:
    """What the bare engine finds, in this process."""
    return Detector(model, max(1, granted_cpus() // ENGINES), whole=whole).detect(jpeg)


def alike(found: Detections, expected: Detections, least_overlap: float = LEAST_OVERLAP) -> bool:
    """As many, and for each that is expected one of its label with a box that overlaps (intersection over union) so
    much or more."""
    return len(found) == len(expected) and all(
        any(one["label"] == other["label"] and _overlap(one["box"], other["box"]) >= least_overlap for other in found)
        for one in expected
    )


def _for_sqlalchemy(url: str) -> str:
    """SQLAlchemy does not look for a socket where libpq does."""
    place = urlsplit(url)
    socket, _, port = place.netloc.rpartition("@")[2].rpartition(":")
    return f"db+postgresql+psycopg://{place.username}@{place.path}?host={unquote(socket)}&port={port}"


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    width = min(one["x2"], other["x2"]) - max(one["x1"], other["x1"])
    height = min(one["y2"], other["y2"]) - max(one["y1"], other["y1"])
    both = max(0.0, width) * max(0.0, height)
    either = sum((each["x2"] - each["x1"]) * (each["y2"] - each["y1"]) for each in (one, other)) - both
    return both / either if either else 1.0


def _answers(url: str, request: Request) -> bool:
    try:
        return _answer(url, request).status_code == request.status
    except httpx.TransportError:
        return False


def _answer(url: str, request: Request) -> httpx.Response:
    return httpx.request(
        request.method, url + request.path, content=request.body, headers=request.headers, timeout=60, trust_env=False
    )
