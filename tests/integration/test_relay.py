"""The relay on a real RabbitMQ: the window, the queue's losses, dead letters, pauses, and several relays."""

import asyncio
import json
from contextlib import AsyncExitStack, closing

import pika
import pytest
from jsonschema import Draft202012Validator

from broker.relay import release
from broker.relay.publisher import Publisher
from custody.instance import InstanceLock
from custody.tasks import Offer
from custody.transport import topology
from custody.transport.connection import Channel, Connection, Login
from custody.wire import PoolState, Priority
from tests.conftest import ROOT
from tests.contract.harness.amqp import AmqpHarness
from tests.contract.test_transport_contract import receive
from tests.support.domain import POOL
from tests.support.rabbitmq import RabbitMQ

PROMPT_SECONDS = 10.0
INTERACTIVE = topology.queue_of(POOL, Priority.INTERACTIVE)


@pytest.fixture
async def fleet(domain, amqp_url):
    async with AmqpHarness(domain, amqp_url) as harness:
        yield harness


@pytest.fixture
async def connection(amqp_url, fleet):
    connection = await Connection.open(Login(amqp_url).parameters("test"))
    yield connection
    await connection.close()


async def test_messages_keep_their_contract(domain, acme, fleet, amqp_url):
    kept = await domain.keep(acme, b"a picture")
    job = await domain.submit_on(acme, [kept.files[0].id] * 3)
    traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    await domain.change("UPDATE wharf.jobs SET traceparent = %s", [traceparent])
    await fleet.announce()
    validator = Draft202012Validator(json.loads((ROOT / "schema" / "messages" / "task.v1.json").read_text()))
    messages = await asyncio.to_thread(taken, amqp_url, INTERACTIVE, 3)
    for properties, body in messages:
        document = json.loads(body)
        validator.validate(document)
        assert len(body) < 600
        assert (properties.message_id, properties.content_type) == (document["task"], "application/json")
        assert (properties.delivery_mode, properties.type) == (2, "wharf.task.v1")
        assert properties.headers["traceparent"] == traceparent
        assert (document["tenant"], document["model"]) == (str(acme), POOL)
        assert (domain.volume.root / document["file"]["path"]).read_bytes() == b"a picture"
        assert document["file"]["size"] == len(b"a picture")
    tasks = await domain.ask("SELECT id::text FROM wharf.tasks WHERE job_id = %s", [job])
    assert {properties.message_id for properties, _ in messages} == {row["id"] for row in tasks}


async def test_no_more_than_the_window_is_in_the_queue_and_it_is_refilled(domain, acme, amqp_url):
    async with AmqpHarness(domain, amqp_url, window=10) as fleet:
        job = await domain.submit(acme, inputs=60)
        fleet.tell()
        received = 0
        transport = await fleet.connect("w1", prefetch=4)
        while received < 60:
            [row] = await domain.ask("SELECT count(*) FROM wharf.released")
            assert row["count"] <= 10
            for delivery in await receive(transport, 1):
                received += 1
                await domain.end(delivery.claim)
                await transport.settle(delivery)
        assert (await domain.get(acme, job)).state == "succeeded"


async def test_an_idle_queue_is_not_published_to_again(domain, acme, fleet, connection):
    await domain.submit(acme, inputs=5)
    await fleet.announce()
    for _ in range(3):
        fleet.tell()
        await asyncio.sleep(0.2)
    assert await topology.find(connection, POOL, Priority.INTERACTIVE) == 5


async def test_what_is_given_back_is_not_published_again(domain, acme, fleet, connection):
    await domain.submit(acme, inputs=8)
    await fleet.announce()
    transport = await fleet.connect("w1")
    await transport.give_back(await receive(transport, 5))
    for _ in range(3):
        fleet.tell()
        await asyncio.sleep(0.2)
    assert await topology.find(connection, POOL, Priority.INTERACTIVE) == 8


async def test_nothing_of_a_paused_pool_begins_until_it_is_resumed(domain, acme, fleet, connection):
    await domain.submit(acme, inputs=2)
    await fleet.announce()
    await set_state(domain, PoolState.PAUSED)
    late = await domain.submit(acme)
    fleet.tell()
    transport = await fleet.connect("w1")
    assert not await transport.receive(Priority.INTERACTIVE, 5, 1.0)
    # What was in the queue already has been sent back to the task rows.
    assert await topology.find(connection, POOL, Priority.INTERACTIVE) == 0
    assert domain.rows("SELECT DISTINCT state, attempt FROM wharf.tasks") == [{"state": "queued", "attempt": 0}]
    await set_state(domain, PoolState.ACTIVE)
    fleet.tell()
    deliveries = await receive(transport, 3)
    assert late in {delivery.claim.job_id for delivery in deliveries}


async def test_a_retry_is_released_when_it_is_due(domain, acme, fleet):
    await domain.submit(acme)
    await fleet.announce()
    transport = await fleet.connect("w1")
    [delivery] = await receive(transport, 1)
    await domain.retry(delivery.claim, after_seconds=0.7)
    await transport.settle(delivery)
    fleet.tell()
    async with asyncio.timeout(2.5):
        [again] = await receive(transport, 1)
    assert again.claim.attempt == 2


async def test_a_deleted_queue_is_made_again_and_what_it_held_is_released_again(
    domain, acme, fleet, connection, monkeypatch
):
    await domain.submit(acme, inputs=20)
    await fleet.announce()
    await topology.delete(connection, POOL, Priority.INTERACTIVE)
    # No worker may make it: it waits for the relay.
    transport = await fleet.connect("w1")
    async with asyncio.timeout(PROMPT_SECONDS):
        assert len(await receive(transport, 20)) == 20


async def test_what_no_queue_takes_comes_back_and_is_released_once_there_is_one(domain, acme, fleet, connection):
    await topology.delete(connection, POOL, Priority.INTERACTIVE)
    await domain.submit(acme, inputs=5)
    fleet.tell()
    transport = await fleet.connect("w1")
    async with asyncio.timeout(PROMPT_SECONDS):
        assert len(await receive(transport, 5)) == 5
    assert counted(fleet, "wharf_messages_refused_total", pool=POOL, reason="returned") > 0


async def test_what_a_queue_refuses_that_may_hold_no_more_is_released_again_later(
    domain, acme, fleet, rabbitmq, vhost, amqp_url
):
    limits = json.dumps({"max-length": 3, "overflow": "reject-publish"})
    await asyncio.to_thread(rabbitmq.ctl, "set_policy", "-p", vhost, "short", r"\.interactive$", limits)
    await asyncio.to_thread(fill, amqp_url, INTERACTIVE)
    await domain.submit(acme, inputs=30)
    fleet.tell()
    await until(lambda: counted(fleet, "wharf_messages_refused_total", pool=POOL, reason="nacked") > 0)
    transport = await fleet.connect("w1")
    ended = 0
    async with asyncio.timeout(60):
        while ended < 30:
            for delivery in await transport.receive(Priority.INTERACTIVE, 5, 1.0):
                await domain.end(delivery.claim)
                await transport.settle(delivery)
                ended += 1


async def test_a_message_that_the_queue_has_lost_is_missed_and_sent_again(domain, acme, fleet, amqp_url, monkeypatch):
    monkeypatch.setattr(release, "OVERLOOKED_SECONDS", 1.0)
    monkeypatch.setattr(release, "LOOK_SECONDS", 0.3)
    await domain.submit(acme, inputs=6)
    await fleet.announce()
    lost = await asyncio.to_thread(taken, amqp_url, INTERACTIVE, 2)
    assert len(lost) == 2
    transport = await fleet.connect("w1")
    async with asyncio.timeout(PROMPT_SECONDS * 2):
        deliveries = await receive(transport, 6)
    assert len({delivery.claim.task_id for delivery in deliveries}) == 6


async def test_a_full_queue_that_nobody_reads_is_not_taken_for_lost(domain, acme, fleet, connection, monkeypatch):
    monkeypatch.setattr(release, "OVERLOOKED_SECONDS", 0.5)
    monkeypatch.setattr(release, "LOOK_SECONDS", 0.2)
    await domain.submit(acme, inputs=6)
    await fleet.announce()
    await asyncio.sleep(7)
    assert await topology.find(connection, POOL, Priority.INTERACTIVE) == 6
    assert counted(fleet, "wharf_tasks_released_again_total", pool=POOL) == 0


async def test_a_dead_letter_whose_task_is_queued_is_dispatched_again(domain, acme, fleet, connection, monkeypatch):
    job = await domain.submit(acme)
    await fleet.announce()
    channel = await connection.channel()
    [tag] = await tags(channel, INTERACTIVE, 1)
    channel.reject(tag)
    await until(lambda: counted(fleet, "wharf_dead_letters_total", outcome="dispatched") == 1)
    await domain.change("UPDATE wharf.tasks SET not_before = now()")
    fleet.tell()
    [delivery] = await receive(await fleet.connect("w1"), 1)
    assert delivery.claim.job_id == job
    assert await connection_count(connection, topology.DEAD_LETTERS) == 0


async def test_dead_letters_that_nobody_needs_are_counted_and_dropped(domain, acme, fleet, connection, amqp_url):
    job = await domain.submit(acme)
    await fleet.announce()
    channel = await connection.channel()
    [tag] = await tags(channel, INTERACTIVE, 1)
    await domain.cancel(acme, job)
    channel.reject(tag)
    await asyncio.to_thread(put, amqp_url, topology.DEAD_LETTERS, b"\xff\xd8\xff\xe0", b"{}", b"x" * 5000)
    await until(lambda: counted(fleet, "wharf_dead_letters_total", outcome="void") == 1)
    await until(lambda: counted(fleet, "wharf_dead_letters_total", outcome="malformed") == 2)
    await until(lambda: counted(fleet, "wharf_dead_letters_total", outcome="oversized") == 1)
    assert await connection_count(connection, topology.DEAD_LETTERS) == 0


async def test_what_is_no_message_of_ours_is_rejected_and_the_next_one_is_worked_on(domain, acme, fleet, amqp_url):
    transport = await fleet.connect("w1")
    foreign = json.dumps({"task": "0" * 36, "tenant": "", "model": "birds", "file": {}}).encode()
    await asyncio.to_thread(put, amqp_url, INTERACTIVE, b"", b"not JSON", b"\0" * 100_000, foreign)
    job = await domain.submit(acme)
    await fleet.announce()
    [delivery] = await receive(transport, 1)
    assert delivery.claim.job_id == job
    await until(lambda: len(fleet.rejected) == 4)
    assert sorted(fleet.rejected) == ["malformed", "malformed", "malformed", "oversized"]


async def test_further_messages_for_a_task_in_hand_are_void_and_leave_the_queue(
    domain, acme, fleet, connection, amqp_url
):
    await domain.submit(acme)
    await fleet.announce()
    [(_, body)] = await asyncio.to_thread(taken, amqp_url, INTERACTIVE, 1)
    await asyncio.to_thread(put, amqp_url, INTERACTIVE, body, body)
    transport = await fleet.connect("w1")
    [delivery] = await receive(transport, 1)
    await asyncio.to_thread(put, amqp_url, INTERACTIVE, body, body)
    assert not await transport.receive(Priority.INTERACTIVE, 5, 0.5)
    assert await domain.end(delivery.claim)
    await transport.settle(delivery)
    assert not await transport.receive(Priority.INTERACTIVE, 5, 0.5)
    await fleet.abandon("w1")
    assert await topology.find(connection, POOL, Priority.INTERACTIVE) == 0


async def test_a_redelivered_task_of_a_worker_that_lives_is_left_to_it(domain, acme, fleet):
    await domain.submit(acme)
    [claim] = await domain.claim(worker="holder")
    url = domain.installation.url("wharf_worker")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(InstanceLock(url, kind="worker", instance="holder"))
        claims, _ = await offered(domain, claim.task_id)
        assert claims == []
        assert await domain.ask("SELECT state, worker, attempt FROM wharf.tasks") == [
            {"state": "running", "worker": "holder", "attempt": 1}
        ]
    # Its session ends with it.
    await asyncio.sleep(0.3)
    [taken_over], _ = await offered(domain, claim.task_id)
    assert (taken_over.task_id, taken_over.attempt, taken_over.alone) == (claim.task_id, 2, True)


async def test_a_redelivered_task_whose_worker_died_too_lately_to_be_missed_is_taken_over_a_moment_later(
    domain, acme, fleet
):
    await domain.submit(acme)
    await fleet.announce()
    url = domain.installation.url("wharf_worker")
    async with InstanceLock(url, kind="worker", instance="dead"):
        dead, living = await fleet.connect("dead"), await fleet.connect("living")
        [lost] = await receive(dead, 1)
        await fleet.vanish("dead")
        assert not await living.receive(Priority.INTERACTIVE, 1, 0.5)
    [taken_over] = await receive(living, 1)
    assert (taken_over.claim.task_id, taken_over.claim.attempt) == (lost.claim.task_id, 2)


async def test_a_message_that_comes_for_the_first_time_takes_nothing_over(domain, acme, fleet):
    await domain.submit(acme)
    [claim] = await domain.claim(worker="holder")
    assert await offered(domain, claim.task_id, redelivered=False) == ([], [])


async def test_a_redelivered_task_whose_attempts_are_spent_fails(domain, acme, fleet):
    job = await domain.submit(acme)
    for attempt in (1, 2, 3):
        [row] = await domain.ask("SELECT id FROM wharf.tasks")
        [claim], _ = await offered(domain, row["id"], worker=f"w{attempt}")
        assert claim.spent == attempt
    claims, [failed] = await offered(domain, row["id"])
    assert claims == []
    assert (failed.job_id, failed.state) == (job, "failed")


async def test_a_relay_and_a_worker_need_no_more_rights_than_the_guide_says(domain, acme, rabbitmq, vhost):
    """docs/operations.md lists them: configure, write, read."""
    users = {}
    for name, rights in {
        "relay": (r"^wharf\.v1\.", r"^(amq\.default|wharf\.v1\..*)$", r"^wharf\.v1\."),
        "worker": ("^$", "^$", r"^wharf\.v1\."),
    }.items():
        user = users[name] = f"{name}-{vhost}"
        await asyncio.to_thread(rabbitmq.ctl, "add_user", user, "secret")
        await asyncio.to_thread(rabbitmq.ctl, "set_permissions", "-p", vhost, user, *rights)
    urls = {name: rabbitmq.url(vhost, user=user, password="secret") for name, user in users.items()}
    async with AmqpHarness(domain, urls["relay"], workers_url=urls["worker"]) as fleet:
        job = await domain.submit(acme, inputs=3)
        await fleet.announce()
        transport = await fleet.connect("w1")
        first, second, third = await receive(transport, 3)
        await domain.end(first.claim)
        await transport.settle(first)
        await transport.give_back([second])
        third.message.intake.reject(third.message.tag)
        await until(lambda: counted(fleet, "wharf_dead_letters_total", outcome="void") == 1)
        [again] = await receive(transport, 1)
        assert again.claim.job_id == job


async def test_a_second_relay_takes_over_the_pools_of_one_that_dies(domain, acme, fleet, amqp_url):
    async with fleet.another_relay() as second:
        transport = await fleet.connect("w1")
        await fleet.end_relay()
        job = await domain.submit(acme)
        async with asyncio.timeout(PROMPT_SECONDS):
            while not (deliveries := await transport.receive(Priority.INTERACTIVE, 1, 0.5)):
                fleet.tell()
        assert deliveries[0].claim.job_id == job
        assert second.registry.get_sample_value("wharf_relay_pools") == 2


async def test_beside_each_other_relays_publish_nothing_twice(domain, acme, fleet, connection):
    async with fleet.another_relay() as second:
        await domain.submit(acme, inputs=200)
        await fleet.announce()
        await asyncio.sleep(0.3)
        assert await topology.find(connection, POOL, Priority.INTERACTIVE) == 200
        assert second.registry.get_sample_value("wharf_relay_pools") == 0


async def test_a_queue_without_a_leader_is_made_anew(domain, acme, tmp_path, monkeypatch):
    """RabbitMQ 3.10 forgets the members of a quorum queue that is killed a moment after it was declared: it takes
    messages and confirms none."""
    monkeypatch.setattr(release, "CONFIRM_SECONDS", 2.0)
    with RabbitMQ(tmp_path / "rabbitmq") as server:
        async with AmqpHarness(domain, server.url()) as fleet:
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            job = await domain.submit(acme, inputs=3)
            transport = await fleet.connect("w1")
            async with asyncio.timeout(90):
                received = []
                while len(received) < 3:
                    fleet.tell()
                    received += await transport.receive(Priority.INTERACTIVE, 3, 0.5)
            assert {delivery.claim.job_id for delivery in received} == {job}


async def test_a_queue_that_confirms_slowly_is_not_taken_for_one_that_never_will(domain, acme, amqp_url, monkeypatch):
    monkeypatch.setattr(release, "CONFIRM_SECONDS", 1.0)
    deleted, settle, numbers = [], Publisher._settled, []

    def settle_late(publisher, number, multiple, taken):
        """One after the other, 0.4 s apart: all six take longer than the relay waits for a sign of life."""
        for each in range(max(numbers, default=0) + 1 if multiple else number, number + 1):
            numbers.append(each)
            asyncio.get_running_loop().call_later(0.4 * len(numbers), settle, publisher, each, False, taken)

    monkeypatch.setattr(Publisher, "_settled", settle_late)
    monkeypatch.setattr(topology, "delete", lambda *queue: deleted.append(queue))
    async with AmqpHarness(domain, amqp_url) as fleet:
        await domain.submit(acme, inputs=6)
        fleet.tell()
        labels = {"pool": POOL, "priority": "interactive"}
        async with asyncio.timeout(PROMPT_SECONDS):
            while fleet.metrics.registry.get_sample_value("wharf_tasks_released_total", labels) != 6:
                await asyncio.sleep(0.05)
    assert deleted == []


async def offered(domain, task, *, worker: str = "w2", redelivered: bool = True):
    async with domain.worker.transaction() as transaction:
        return await domain.tasks.claim(transaction, [Offer(task, redelivered)], pool=POOL, worker=worker)


async def set_state(domain, state: PoolState) -> None:
    await domain.change(
        "INSERT INTO wharf.pools (name, state) VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET state = excluded.state",
        [POOL, state.value],
    )


def taken(amqp_url: str, queue: str, count: int) -> list[tuple[pika.BasicProperties, bytes]]:
    """So many messages, acknowledged: gone from the queue."""
    found = []
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        channel = connection.channel()
        while len(found) < count:
            _, properties, body = channel.basic_get(queue, auto_ack=True)
            if properties:
                found.append((properties, body))
    return found


def put(amqp_url: str, queue: str, *bodies: bytes) -> None:
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        for body in bodies:
            connection.channel().basic_publish("", queue, body)


def fill(amqp_url: str, queue: str) -> None:
    """Until it refuses one more."""
    with closing(pika.BlockingConnection(pika.URLParameters(amqp_url))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for _ in range(5000):
            try:
                channel.basic_publish("", queue, b"something in the way")
            except pika.exceptions.NackError:
                return
        raise TimeoutError("it takes whatever comes")


async def tags(channel: Channel, queue: str, count: int) -> list[int]:
    found: list[int] = []
    consumer = await channel.consume(queue, count, lambda arrival: found.append(arrival.tag), lambda: None)
    async with asyncio.timeout(PROMPT_SECONDS):
        while len(found) < count:
            await asyncio.sleep(0.01)
    await channel.cancel(consumer)
    return found


async def connection_count(connection: Connection, queue: str) -> int:
    channel = await connection.channel()
    waiting = await channel.count_messages(queue)
    await channel.close()
    return waiting


def counted(fleet: AmqpHarness, name: str, **labels: str) -> float:
    return fleet.metrics.registry.get_sample_value(name, labels) or 0.0


async def until(condition) -> None:
    async with asyncio.timeout(PROMPT_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)
