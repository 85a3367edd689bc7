"""Whether this broker can take work: asked by probes without a key, so that the answer is good for a second."""

import asyncio
import time
from collections.abc import Awaitable, Mapping

from custody import models
from custody.database import Database
from custody.errors import CustodyError
from custody.volume import Volume

CHECK_SECONDS = 3.0
GOOD_SECONDS = 1.0


class Readiness:
    """`needs_worker`: not ready before a warm worker lives."""

    def __init__(self, database: Database, volume: Volume, *, needs_worker: bool) -> None:
        self._database = database
        self._volume = volume
        self._needs_worker = needs_worker
        self._checking = asyncio.Lock()
        self._found: Mapping[str, str] = {}
        self._found_at = -GOOD_SECONDS

    async def checks(self) -> Mapping[str, str]:
        """What each part answered: `ok`, or what is wrong with it."""
        async with self._checking:
            if time.monotonic() - self._found_at >= GOOD_SECONDS:
                self._found = await self._look()
                self._found_at = time.monotonic()
        return self._found

    async def _look(self) -> Mapping[str, str]:
        checks = {"database": self._ask_database(), "volume": self._volume.check_writable()}
        if self._needs_worker:
            checks["worker"] = self._ask_for_workers()
        found = dict(zip(checks, await asyncio.gather(*map(_outcome, checks.values())), strict=True))
        # The embedded transport is the database: the relay's own connection joins here with RabbitMQ.
        return {**found, "transport": found["database"]}

    async def _ask_database(self) -> None:
        async with self._database.transaction():
            pass  # It has asked the server for the tenant's view already.

    async def _ask_for_workers(self) -> None:
        async with self._database.transaction() as transaction:
            if not any(model.ready_workers for model in await models.list_models(transaction)):
                raise CustodyError("model_not_found", "no warm worker yet")


async def _outcome(check: Awaitable[None]) -> str:
    try:
        await asyncio.wait_for(check, CHECK_SECONDS)
    except CustodyError as error:
        return error.detail
    except TimeoutError:
        return f"no answer in {CHECK_SECONDS:.0f} s"
    return "ok"
