"""How many pictures a broker takes: each on disk and in the tables before its answer. Against nginx, which only writes
the file, and against nothing but durable files."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import psycopg

import starter_model
from bench.durable_files import durable_files
from bench.fleet import TRANSPORTS, Fleet, fleet
from bench.load import measured
from bench.nginx import Nginx, nginx, put
from bench.null_engine import NULL_ENGINE
from bench.pictures import distinct, model_and_photo
from bench.request import predict
from bench.rounds import Contender, Contest, Window
from bench.scenario import Scenario, program

CONNECTIONS = 16
WARM_UP = 100

PAUSED = "INSERT INTO wharf.pools (name, state) SELECT name, 'paused' FROM wharf.models"


@contextmanager
def _open(folder: Path, size: int) -> Iterator[Contest]:
    program("wrk")
    _, photo = model_and_photo()
    with ExitStack() as stack:
        limit = stack.enter_context(nginx(folder / "nginx"))
        contenders = []
        for transport in TRANSPORTS:
            settings = {"WHARF_SLOTS": "1", "WHARF_ENGINE": NULL_ENGINE}
            ours = stack.enter_context(fleet(transport, folder / transport, starter_model.MODEL, settings))
            # What is accepted waits: this is not about what becomes of it.
            with psycopg.connect(ours.service.database) as connection:
                connection.execute(PAUSED)
            _accept(ours, photo, WARM_UP)
            contenders.append(Contender(f"{transport}, c={CONNECTIONS}", partial(_accept, ours, photo, size)))
        contenders.append(
            Contender(
                f"durable files, {CONNECTIONS} threads",
                lambda: durable_files(folder / "files", islice(distinct(photo), size), CONNECTIONS),
            )
        )
        yield Contest(contenders, Contender(f"nginx PUT, c={CONNECTIONS}", partial(_put, limit, folder, photo, size)))


def _accept(ours: Fleet, photo: bytes, pictures: int) -> Window:
    window = measured(ours, predict(ours.service, photo, wait=False), pictures, CONNECTIONS)
    with psycopg.connect(ours.service.database, autocommit=True) as connection:
        # A job without tasks would be taken for one that has ended.
        with connection.transaction():
            connection.execute("DELETE FROM wharf.tasks")
            connection.execute("DELETE FROM wharf.jobs")
        connection.execute("VACUUM ANALYZE wharf.jobs, wharf.tasks, wharf.files, wharf.blobs")
    return window


def _put(limit: Nginx, folder: Path, photo: bytes, pictures: int) -> Window:
    window = measured(limit, put(photo), pictures, CONNECTIONS)
    shutil.rmtree(folder / "nginx" / "files")
    (folder / "nginx" / "files").mkdir()
    return window


SCENARIO = Scenario(
    "e", "Accepted POST /v1/predict against nginx's DAV PUT of the same pictures", "images", size=2000, open=_open
)
