"""A worker, killed with -9 just before its n-th change, from its start until no job is open.

    python -m tests.support.worker_killed_before

For each n on a line of its standard input it runs one worker, in a fork, so that nothing is imported twice, and prints
its exit status on a line: -9 where it was killed, 0 where it has fewer changes. Its parts are put together as `wharf
worker` does it, but for the slots: what a picture's bytes begin with is what comes of it. The environment has the URL
of the database and the volume.
"""

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from custody.database import Database
from custody.jobs import Jobs
from custody.notices import Notices
from custody.reconcile import Reconciler
from custody.tasks import Tasks
from custody.telemetry import configure_logging
from custody.transport.embedded import EmbeddedTransport
from inference_worker import consumer
from inference_worker.consumer import Consumer
from inference_worker.metrics import WorkerMetrics
from inference_worker.outcomes import Corrupt, Done, Failed, Outcome, Retry, Unprocessable, Work
from tests.support.countdown import Countdown
from tests.support.domain import DETECTIONS, ENGINE, MODEL, POOL

WORKER = "doomed"
LEASE_SECONDS = 30.0
MOST_SECONDS = 60


async def work() -> None:
    """Until no job is open and nothing is held."""
    url, volume = os.environ["WHARF_DATABASE_URL"], os.environ["WHARF_VOLUME"]
    tasks, jobs = Tasks(lease_seconds=LEASE_SECONDS, max_attempts=3), Jobs()
    consumer.backoff_seconds = lambda spent: 0.0
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database(url, name=WORKER, role="wharf_worker", by_index=True))
        notices = await stack.enter_async_context(Notices(url, name=WORKER))
        reconciler = Reconciler(database, tasks, jobs, notices, every_seconds=5)
        async with database.transaction() as transaction:
            released = await tasks.give_back_former(transaction, WORKER)
        await reconciler.follow(released)
        await reconciler.run_once()
        transport = EmbeddedTransport(database, tasks, notices, pool=POOL, worker=WORKER, follow=reconciler.follow)

        async def look(work: Work) -> Outcome:
            kind = (Path(volume) / work.path).read_bytes().split()[0].decode()
            if kind == "slow":
                # Its lease is extended meanwhile.
                tasks.lease_seconds = 0.09
                await asyncio.sleep(0.2)
                tasks.lease_seconds = LEASE_SECONDS
            return OUTCOMES[kind]

        consumes = Consumer(
            database=database,
            transport=transport,
            tasks=tasks,
            jobs=jobs,
            notices=notices,
            run_in_slot=look,
            has_slots=lambda: True,
            model=MODEL,
            engine=ENGINE,
            verified_share=1.0,
            slots=1,
            prefetch=1,
            drain_seconds=5,
            metrics=WorkerMetrics(),
        )
        running = asyncio.create_task(consumes.run(asyncio.Event()))
        async with asyncio.timeout(MOST_SECONDS):
            while await _is_open(database) or consumes._held:
                assert not running.done(), running.result()
                await asyncio.sleep(0.01)
        # Whoever is asked to stop waits for what it may receive yet: there is nothing.
        os._exit(0)


OUTCOMES = {
    "good": Done(DETECTIONS, 40, 30, read_ms=1, decode_ms=2, infer_ms=3),
    "slow": Done(DETECTIONS, 40, 30, read_ms=1, decode_ms=2, infer_ms=3),
    "failing": Failed("inference_failed", "It does not work."),
    "crashing": Retry("worker_crashed", "It died."),
    "refused": Unprocessable("undecodable_image", "It is no picture."),
    "corrupt": Corrupt("It is another one."),
}
"""By the first word of the picture."""


async def _is_open(database: Database) -> bool:
    async with database.statements() as statements:
        found = await statements.execute("SELECT id FROM wharf.jobs WHERE state = 'open' OR done IS NULL LIMIT 1")
        return await found.fetchone() is not None


def main() -> None:
    configure_logging(process="worker", format="text", level="critical")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            Countdown(int(line)).arm()
            asyncio.run(work())
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
