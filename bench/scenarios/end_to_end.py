"""Pictures by HTTP, boxes in the answer: both transports and every peer, few and many clients, held against the bare
engine."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import psycopg

from bench.bare_engine import bare_engine
from bench.detector import Detections
from bench.fleet import TRANSPORTS, Fleet, fleet, per_thing
from bench.load import closed_loop, cpu_figures, measured
from bench.peer import LEAST_OVERLAP, PEERS, WrongAnswerError, alike, enter_all, expected_of
from bench.peers import ENGINES
from bench.pictures import distinct, model_and_photo, written
from bench.request import predict
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario, program

SLOTS = {"WHARF_SLOTS": str(ENGINES)}
CONNECTIONS = (1, 8, 32)
ASYNCHRONOUS_CONNECTIONS = 8
WARM_UP = 40
POLL_SECONDS = 0.05
LONGEST_WINDOW_SECONDS = 600

DONE = "SELECT count(*)::int FROM wharf.tasks WHERE state = 'succeeded'"


@contextmanager
def contest(
    folder: Path, size: int, photo: bytes, connections: Sequence[int], *, whole: bool, least_overlap: float
) -> Iterator[Contest]:
    """`whole`: the peers decode it whole. Our boxes overlap with theirs by `least_overlap` or more."""
    program("wrk")
    model, _ = model_and_photo()
    # Nobody sees a picture twice: what is in custody already costs less.
    files = written(islice(distinct(photo), size), folder / "pictures")
    expected = expected_of(model, photo, whole=whole)
    contenders: list[Contender] = []

    def enter(name: str, measure: Callable[[int, int], Window]) -> None:
        contenders.extend(Contender(f"{name}, c={each}", partial(measure, size, each)) for each in connections)

    with ExitStack() as stack:
        bare = stack.enter_context(bare_engine("openvino", model, files))
        for transport in TRANSPORTS:
            ours = stack.enter_context(fleet(transport, folder / transport, model, SLOTS))
            found = _found(ours, photo)
            if not alike(found, expected, least_overlap):
                raise WrongAnswerError(f"We found {found} where the bare engine finds {expected}.")
            measure = partial(measured, ours, predict(ours.service, photo, wait=True))
            measure(WARM_UP, max(connections))
            enter(transport, measure)
            contenders.append(Contender(f"{transport}, asynchronous", partial(_asynchronous, ours, photo, size)))
        peers, left_out = enter_all(stack, PEERS, folder, model, photo, expected, whole=whole)
        for running in peers:
            enter(running.peer.name, partial(running.measured, running.peer.ask(photo)))
        yield Contest(contenders, Contender("bare engine", partial(bare.measure, size)), left_out=left_out)


def _found(ours: Fleet, photo: bytes) -> Detections:
    request = predict(ours.service, photo, wait=True)
    with ours.service.client() as client:
        answer = client.post(request.path, content=request.body, headers=dict(request.headers)).raise_for_status()
    found: Detections = answer.json()["results"][0]["detections"]
    return found


def _asynchronous(ours: Fleet, photo: bytes, pictures: int) -> Window:
    """To the last result: the clients are told that a picture is accepted, and wait for nothing else."""
    with psycopg.connect(ours.service.database, autocommit=True) as connection:
        wanted = _done(connection) + pictures
        before = ours.cpu_seconds()
        began = time.perf_counter()
        load = closed_loop(ours.url, predict(ours.service, photo, wait=False), pictures, ASYNCHRONOUS_CONNECTIONS)
        while _done(connection) < wanted:
            if time.perf_counter() - began > LONGEST_WINDOW_SECONDS:
                raise RuntimeError(f"{pictures} pictures had not all a result after {LONGEST_WINDOW_SECONDS} s.")
            time.sleep(POLL_SECONDS)
        seconds = time.perf_counter() - began
        cpu = per_thing(before, ours.cpu_seconds(), pictures)
    return Window(pictures / seconds, {**cpu_figures(cpu), "client ms": load.client_seconds / pictures * 1000})


def _done(connection: psycopg.Connection) -> int:
    [(done,)] = connection.execute(DONE).fetchall()
    return int(done)


def _open(folder: Path, size: int) -> AbstractContextManager[Contest]:
    _, photo = model_and_photo()
    return contest(folder, size, photo, CONNECTIONS, whole=False, least_overlap=LEAST_OVERLAP)


SCENARIO = Scenario(
    "a", "Distinct pictures by HTTP against the bare engine, no pinning", "images", size=300, open=_open
)
