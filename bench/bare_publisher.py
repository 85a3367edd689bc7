"""The limit of a relay: pika's AsyncioConnection that publishes to a quorum queue, with confirms and many on their way,
and reads nothing first and writes nothing down afterwards."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pika
import uvloop
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.frame import Method

from bench.rounds import Window

QUEUE = "bare"
LONGEST_SECONDS = 120
WINDOW = 1024
BODY = b"x" * 400
PERSISTENT = 2


def measure(url: str, messages: int) -> Window:
    """From the first message to the last confirm. Leaves no queue."""
    return uvloop.run(_measure(url, messages))


async def _measure(url: str, messages: int) -> Window:
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[Channel] = loop.create_future()
    connection = AsyncioConnection(
        pika.URLParameters(url),
        on_open_callback=lambda connection: _open_channel(connection, opened),
        on_open_error_callback=lambda _, error: opened.set_exception(_exception(error)),
        custom_ioloop=loop,
    )
    try:
        channel = await opened
        await _answer(channel.queue_declare, QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        publishing = Publishing(channel, messages)
        cpu_began = time.process_time()
        seconds = await publishing.run()
        cpu_seconds = time.process_time() - cpu_began
        await _answer(channel.queue_delete, QUEUE)
    finally:
        if connection.is_open:
            closed = asyncio.Event()
            connection.add_on_close_callback(lambda *_: closed.set())
            connection.close()
            await closed.wait()
    return Window(messages / seconds, {"publisher ms": cpu_seconds / messages * 1000})


class Publishing:
    def __init__(self, channel: Channel, messages: int) -> None:
        self._channel = channel
        self._messages = messages
        self._sent = self._confirmed = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._properties = pika.BasicProperties(delivery_mode=PERSISTENT)

    async def run(self) -> float:
        """The seconds that it took."""
        await _answer(self._channel.confirm_delivery, self._settled)
        self._channel.add_on_close_callback(lambda _, error: self._fail(error))
        began = time.perf_counter()
        self._fill()
        async with asyncio.timeout(LONGEST_SECONDS):
            await self._done
        return time.perf_counter() - began

    def _fill(self) -> None:
        while self._sent < self._messages and self._sent - self._confirmed < WINDOW:
            self._channel.basic_publish("", QUEUE, BODY, self._properties, mandatory=True)
            self._sent += 1

    def _settled(self, frame: Method[pika.spec.Basic.Ack | pika.spec.Basic.Nack]) -> None:
        if isinstance(frame.method, pika.spec.Basic.Nack):
            self._fail(RuntimeError("RabbitMQ did not take a message of the bare publisher."))
            return
        tag = frame.method.delivery_tag or 0
        self._confirmed = tag if frame.method.multiple else self._confirmed + 1
        if self._confirmed >= self._messages:
            if not self._done.done():
                self._done.set_result(None)
        else:
            self._fill()

    def _fail(self, error: BaseException) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def _open_channel(connection: AsyncioConnection, opened: "asyncio.Future[Channel]") -> None:
    connection.channel(on_open_callback=opened.set_result)


async def _answer(method: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*arguments, callback=answered.set_result, **named)
    await answered


def _exception(error: str | BaseException) -> BaseException:
    return error if isinstance(error, BaseException) else RuntimeError(error)
