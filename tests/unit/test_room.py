"""Who may still upload, on a volume whose figures the test says."""

import asyncio
import math
from contextlib import AsyncExitStack
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import room as module
from broker.room import Place, Room
from broker.settings import BrokerSettings
from custody.errors import CustodyError, StartError
from custody.ids import new_id
from custody.pressure import Watermarks
from custody.settings import load
from custody.volume import CHUNK, Usage

GB = 10**9
ACME, GLOBEX = new_id(), new_id()
MARKS = Watermarks(high=0.9, low=0.8, headroom_bytes=1000 * GB)


class Disk:
    """Of 100 GB: from 10 GB free on, uploads are refused, until 20 GB are free."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.looks = 0

    async def usage(self) -> Usage:
        self.looks += 1
        now = self.free
        await asyncio.sleep(0)  # as a thread's answer, it is a moment old
        return Usage(100 * GB - now, now)


@pytest.fixture(autouse=True)
def always_look(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)


@pytest.fixture
def never_look_again(monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", math.inf)


async def test_of_many_large_uploads_at_once_only_those_pass_that_fit_together():
    room = Room(Disk(70 * GB), MARKS)
    async with AsyncExitStack() as under_way:
        begun = await asyncio.gather(*(began(room, under_way, new_id(), GB) for _ in range(100)))
    # 60 GB of room. The last that passes leaves as much as it takes itself.
    assert sum(begun) == 59


async def test_a_tenant_alone_is_promised_half_of_the_room_and_others_find_some_left():
    room = Room(Disk(70 * GB), MARKS)
    async with AsyncExitStack() as under_way:
        assert [await began(room, under_way, ACME, 10 * GB) for _ in range(4)] == [True, True, True, False]
        assert await began(room, under_way, GLOBEX, 10 * GB)
        assert not await began(room, under_way, ACME, GB)
        assert await began(room, under_way, new_id(), 5 * GB)


async def test_room_that_was_promised_is_given_back_whatever_came_of_it():
    room = Room(Disk(70 * GB), MARKS)
    for _ in range(3):
        async with room.upload(ACME, 30 * GB), AsyncExitStack() as under_way:
            assert not await began(room, under_way, ACME, GB)


async def test_what_has_come_is_not_counted_twice():
    disk = Disk(70 * GB)
    room = Room(disk, MARKS)
    async with AsyncExitStack() as under_way:
        place = await under_way.enter_async_context(room.upload(ACME, 30 * GB))
        await place.take(30 * GB)
        disk.free -= 30 * GB
        assert await began(room, under_way, ACME, 15 * GB)


@pytest.mark.usefixtures("never_look_again")
async def test_until_the_next_look_an_upload_that_ended_takes_what_it_brought():
    room = Room(Disk(70 * GB), MARKS)
    async with room.upload(ACME, 30 * GB) as place:
        await place.take(10 * GB)
    async with AsyncExitStack() as under_way:
        assert not await began(room, under_way, ACME, 21 * GB)
        assert await began(room, under_way, ACME, 20 * GB)


async def test_an_upload_that_ends_while_the_volume_is_looked_at_still_takes_what_it_brought(monkeypatch):
    disk = Disk(70 * GB)
    room = Room(disk, MARKS)
    async with room.upload(ACME, 30 * GB) as place:
        looking = asyncio.create_task(room.look())
        while disk.looks < 2:
            await asyncio.sleep(0)
        await place.take(10 * GB)
    assert not looking.done()
    await looking
    monkeypatch.setattr(module, "LOOK_SECONDS", math.inf)
    async with AsyncExitStack() as under_way:
        assert not await began(room, under_way, ACME, 21 * GB)
        assert await began(room, under_way, ACME, 20 * GB)


async def test_without_a_length_an_upload_is_refused_where_the_mark_is_passed():
    disk = Disk(10 * GB + 10 * CHUNK)
    room = Room(disk, MARKS)
    async with room.upload(ACME, None) as place:
        for _ in range(9):
            await place.take(CHUNK)
            disk.free -= CHUNK
        with pytest.raises(CustodyError) as refused:
            await place.take(CHUNK)
    assert refused.value.code == "storage_full"


async def test_above_the_high_mark_none_begins_until_there_is_room_below_the_low_one(caplog):
    disk = Disk(10 * GB)
    room = Room(disk, MARKS)
    taken = []
    for disk.free in (10 * GB, 10 * GB - 1, 15 * GB, 20 * GB - 1, 20 * GB, 15 * GB):
        async with AsyncExitStack() as under_way:
            taken.append(await began(room, under_way, ACME, 0))
        assert room.is_pressed is not taken[-1]
    assert taken == [True, False, False, False, True, True]


async def test_a_refusal_is_507_and_says_when_to_come_again():
    room = Room(Disk(0), MARKS)
    with pytest.raises(CustodyError) as refused:
        async with room.upload(ACME, 1):
            pass
    assert (refused.value.code, refused.value.kind.status, refused.value.kind.retryable) == ("storage_full", 507, True)
    assert refused.value.retry_after


@pytest.mark.usefixtures("never_look_again")
async def test_the_volume_is_asked_once_for_many_uploads():
    disk = Disk(70 * GB)
    room = Room(disk, MARKS)
    async with AsyncExitStack() as under_way:
        await asyncio.gather(*(began(room, under_way, ACME, 1) for _ in range(50)))
    assert disk.looks == 1


STEPS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.booleans(), st.booleans()), max_size=60)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 100), STEPS)
def test_whatever_is_sent_in_whatever_order_nothing_is_written_beyond_the_high_mark(free: int, steps) -> None:
    """Each step: somebody begins an upload of so many GB, declared or not, or sends a part of his and perhaps ends;
    the room looks at the volume again, or knows only what it saw before."""

    async def act() -> None:
        disk = Disk(free * GB)
        room = Room(disk, MARKS)
        uploads: dict[int, tuple[AsyncExitStack, Place, int]] = {}
        least = min(free * GB, 10 * GB)
        for who, size, flag, looks in steps:
            module.LOOK_SECONDS = 0 if looks else math.inf
            if who not in uploads:
                stack = AsyncExitStack()
                try:
                    declared = size * GB if flag else None
                    place = await stack.enter_async_context(room.upload(UUID(int=who % 3), declared))
                except CustodyError:
                    continue
                uploads[who] = stack, place, size * GB if flag else 8 * CHUNK
                continue
            stack, place, left = uploads[who]
            part = min(left, size * CHUNK if left <= 8 * CHUNK else left // 2)
            try:
                await place.take(part)
            except CustodyError:
                flag = True
            else:
                disk.free -= part
                uploads[who] = stack, place, left - part
            assert disk.free >= least
            if flag:
                await stack.aclose()
                del uploads[who]
        for stack, _, _ in uploads.values():
            await stack.aclose()

    asyncio.run(act())


def test_of_a_large_volume_the_headroom_counts_and_of_a_small_one_the_shares():
    marks = Watermarks(high=0.95, low=0.9, headroom_bytes=10 * GB)
    assert [
        (marks.free_at_high(of), marks.free_at_low(of)) for of in (Usage(0, 100 * GB), Usage(900 * GB, 100 * GB))
    ] == [
        (5 * GB, 10 * GB),
        (10 * GB, 20 * GB),
    ]


@pytest.mark.parametrize("high", ["0.9", "0.5"])
def test_a_low_mark_that_is_not_below_the_high_one_keeps_the_broker_from_starting(monkeypatch, high):
    monkeypatch.setenv("WHARF_HIGH_WATER", high)
    with pytest.raises(StartError, match=r"WHARF_LOW_WATER cannot be used: it must be less than WHARF_HIGH_WATER$"):
        load(BrokerSettings, database_url="postgresql://", volume="/")


async def began(room: Room, under_way: AsyncExitStack, tenant: UUID, declared: int) -> bool:
    """Whether such an upload may begin; it then goes on until `under_way` ends."""
    try:
        await under_way.enter_async_context(room.upload(tenant, declared))
    except CustodyError:
        return False
    return True
