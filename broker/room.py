"""Who may still upload: no byte is written that would take the volume beyond its high mark.

What uploads have declared and not yet sent is promised to them. So that nobody keeps all the room to himself, with huge
lengths and a slow line say, a tenant may be promised no more than remains unpromised: alone half of the room, and there
is always some left for one more tenant. Where no length was declared, room is asked for as the bytes come.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import structlog

from custody.errors import CustodyError
from custody.pressure import Pressure, Watermarks
from custody.volume import CHUNK, Usage, Volume

log = structlog.get_logger()

LOOK_SECONDS = 1.0
WATCH_SECONDS = 5.0
"""How old the figures get where nobody uploads."""


@dataclass(eq=False)
class _Upload:
    """`promised` bytes, of which `received` have come; the last look at the volume saw `seen` of them in use."""

    tenant: UUID
    promised: int = 0
    received: int = 0
    seen: int = 0


class Room:
    def __init__(self, volume: Volume, marks: Watermarks) -> None:
        self._volume = volume
        self._pressure = Pressure(marks)
        self._looking = asyncio.Lock()
        self._looked_at = 0.0
        self._usage: Usage | None = None
        self._uploads: set[_Upload] = set()
        self._ended: set[_Upload] = set()
        self._promised: dict[UUID, int] = defaultdict(int)
        self._promised_in_all = 0

    @property
    def usage(self) -> Usage | None:
        """Of the last look; None before the first."""
        return self._usage

    @property
    def is_pressed(self) -> bool:
        return self._pressure.is_on

    @asynccontextmanager
    async def upload(self, tenant: UUID, declared: int | None) -> AsyncIterator["Place"]:
        """Room for a body of so many bytes; None: it was not declared. Raises `CustodyError("storage_full")`."""
        await self.look()
        if self.is_pressed:
            raise _full()
        upload = _Upload(tenant)
        self._promise(upload, declared or 0)
        self._uploads.add(upload)
        try:
            yield Place(self, upload)
        finally:
            self._uploads.remove(upload)
            # Until the next look, what came is in use, and the figures do not know of it.
            self._count(tenant, upload.received - upload.promised)
            upload.promised = upload.received
            self._ended.add(upload)

    async def look(self) -> Usage:
        """Not older than a second. Raises `CustodyError` where the volume does not answer."""
        async with self._looking:
            if self._usage is None or time.monotonic() - self._looked_at >= LOOK_SECONDS:
                ended, self._ended = self._ended, set()
                received = {upload: upload.received for upload in self._uploads}
                try:
                    usage = await self._volume.usage()
                except BaseException:
                    self._ended |= ended
                    raise
                self._looked_at = time.monotonic()
                self._usage = usage
                self._pressure.see(usage)
                self._settle(received)
            assert self._usage is not None
            return self._usage

    async def watch(self) -> None:
        """Looks again and again."""
        while True:
            try:
                await self.look()
            except CustodyError as error:
                log.warning("volume_not_seen", code=error.code, detail=error.detail)
            await asyncio.sleep(WATCH_SECONDS)

    async def more(self, upload: _Upload) -> None:
        """Room for what comes beyond the bytes promised. Raises `CustodyError("storage_full")`."""
        await self.look()
        if self.is_pressed:
            raise _full()
        self._promise(upload, CHUNK)

    def _promise(self, upload: _Upload, size: int) -> None:
        assert self._usage is not None
        room = self._usage.free - self._pressure.marks.free_at_high(self._usage)
        unpromised = room - self._promised_in_all - size
        if size and self._promised[upload.tenant] + size > unpromised:
            raise CustodyError(
                "storage_full",
                "Beside the uploads under way, the volume has no room for this one now. Try again later, or send less.",
                retry_after=10,
            )
        upload.promised += size
        self._count(upload.tenant, size)

    def _count(self, tenant: UUID, size: int) -> None:
        self._promised_in_all += size
        self._promised[tenant] += size

    def _settle(self, received: dict[_Upload, int]) -> None:
        """`received`: by each upload when the look began. What ended before it is all in use, or gone."""
        for upload, seen in received.items():
            upload.seen = seen
        self._promised.clear()
        self._promised_in_all = 0
        for upload in (*self._uploads, *self._ended):
            self._count(upload.tenant, upload.promised - upload.seen)


class Place:
    """The room of one body."""

    def __init__(self, room: Room, upload: _Upload) -> None:
        self._room = room
        self._upload = upload

    async def take(self, size: int) -> None:
        """So many bytes have come. Raises `CustodyError("storage_full")` where there is no room for them."""
        while self._upload.received + size > self._upload.promised:
            await self._room.more(self._upload)
        self._upload.received += size


def _full() -> CustodyError:
    return CustodyError(
        "storage_full",
        "The volume is nearly full: uploads are taken again when there is more room. Let go of files, then try again.",
        retry_after=60,
    )
