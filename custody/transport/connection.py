"""Connections to RabbitMQ: opened, used, and opened again when they break. Errors of the connection and of a channel
are told apart: the first end everything that was done on it, the second one channel.

QueueError
├── ConnectionFailedError    no connection: refused, no login, no such vhost, TLS, lost, closed by the server
└── ChannelFailedError       the server closed one channel: no such queue, other arguments, no right to it
"""

import asyncio
import math
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pika
import pika.exceptions
import structlog
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel as PikaChannel
from pika.spec import Basic, BasicProperties

from custody.errors import CustodyError
from custody.settings import QueueSettings
from custody.transport.frames import outline

log = structlog.get_logger()

HEARTBEAT_SECONDS = 15
OPEN_SECONDS = 15.0
ANSWER_SECONDS = 20.0
"""A quorum queue without a leader does not answer: nobody waits for it for ever."""
SHORTEST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
STEADY_SECONDS = 2.0
"""A connection that lasted for longer was good: the next pause is a short one."""

NOT_FOUND = 404


class QueueError(Exception):
    """RabbitMQ cannot be used as it is asked to. The message says what it answered and what to do."""


class ConnectionFailedError(QueueError):
    """There is no connection, or no longer."""


class ChannelFailedError(QueueError):
    """The server closed a channel. `code`: the AMQP reply code, 404 for a queue that is not there."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"RabbitMQ closed the channel: {code} {text}. {_channel_advice(code)}")
        self.code = code


@dataclass(frozen=True)
class Arrival:
    """A message that a queue handed out. `tag` is its number on the channel; `redelivered`: it was handed out before,
    and nobody settled it."""

    queue: str
    tag: int
    redelivered: bool
    body: bytes


@dataclass(frozen=True)
class Login:
    """Where RabbitMQ is and who we are to it. `url`: amqp:// or amqps://; user and password come from the files where
    they are named. The files are read for each connection, so that what they hold may change."""

    url: str
    username_file: Path | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def of(cls, settings: QueueSettings) -> "Login":
        assert settings.amqp_url is not None
        return cls(
            settings.amqp_url.get_secret_value(),
            username_file=settings.amqp_username_file,
            password_file=settings.amqp_password_file,
            ca_file=settings.amqp_ca_file,
            cert_file=settings.amqp_cert_file,
            key_file=settings.amqp_key_file,
        )

    def parameters(self, name: str) -> pika.URLParameters:
        """Raises `ConnectionFailedError` where the URL or a file cannot be used."""
        try:
            parameters = pika.URLParameters(self.url)
            given = parameters.credentials
            assert isinstance(given, pika.PlainCredentials)
            parameters.credentials = pika.PlainCredentials(
                self.username_file.read_text().strip() if self.username_file else given.username,
                self.password_file.read_text().strip() if self.password_file else given.password,
            )
            if self.url.startswith("amqps:"):
                parameters.ssl_options = pika.SSLOptions(self._tls(), parameters.host)
        except OSError as error:
            raise ConnectionFailedError(f"{error.filename or 'A file of the login'}: {error.strerror}.") from error
        except (ValueError, TypeError) as error:
            # Without the URL: it may hold the password.
            raise ConnectionFailedError(f"WHARF_AMQP_URL cannot be used ({type(error).__name__}).") from None
        # The lower of the two, as AMQP has it: pika alone would overrule the server.
        parameters.heartbeat = lambda _, offered: min(HEARTBEAT_SECONDS, offered or HEARTBEAT_SECONDS)
        parameters.connection_attempts = 1
        parameters.socket_timeout = parameters.stack_timeout = OPEN_SECONDS
        parameters.client_properties = {"connection_name": name}
        return parameters

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


class Amqp:
    """`name`: what the server's list of connections shows."""

    def __init__(self, login: Login, *, name: str) -> None:
        self._login = login
        self._name = name
        self._fault: str | None = "RabbitMQ has not been reached yet."
        self._connection: Connection | None = None

    @property
    def fault(self) -> str | None:
        """Why no message goes out or comes in now; None where they do."""
        if self._connection and self._connection.is_blocked:
            return (
                "RabbitMQ takes no messages: it is short of memory or disk. Give it more, or let its queues run empty."
            )
        return self._fault

    async def keep(self, use: Callable[["Connection"], Awaitable[None]]) -> NoReturn:
        """Runs `use` on a connection, and on a new one whenever it breaks: with pauses that grow and that no two
        processes share. `use` ends only by an error."""
        pause = SHORTEST_PAUSE
        while True:
            opened = math.inf
            try:
                self._connection = await Connection.open(self._login.parameters(self._name))
                self._fault, opened = None, time.monotonic()
                log.info("queue_connected", server=self._connection.server)
                await use(self._connection)
            except* (QueueError, CustodyError) as errors:
                self._fault = reasons(errors)
                log.warning("queue_interrupted", reason=self._fault, again_in_seconds=round(pause, 1))
            finally:
                if self._connection:
                    await self._connection.close()
                    self._connection = None
            if time.monotonic() - opened > STEADY_SECONDS:
                pause = SHORTEST_PAUSE
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(pause * 2, LONGEST_PAUSE)


class _JoiningConnection(AsyncioConnection):
    """pika sends each frame by itself, three for a message, with a call of the system for each. Here those of one turn
    of the loop go out together: half the CPU of a publisher, and a fifth less of the server's."""

    _unsent: bytearray | None = None

    def _adapter_emit_data(self, data: bytes) -> None:
        if self._unsent is None:
            self._unsent = bytearray()
            asyncio.get_running_loop().call_soon(self._send_joined)
        self._unsent += data

    def send(self, frames: bytes) -> None:
        self._output_marshaled_frames([frames])  # type: ignore[attr-defined]  # in pika, and not in its stubs

    def _send_joined(self) -> None:
        unsent, self._unsent = self._unsent, None
        if unsent:
            super()._adapter_emit_data(bytes(unsent))  # type: ignore[misc]  # in pika, and not in its stubs


class Connection:
    """An open connection. Everything that waits on it ends with its error when it is lost."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[QueueError] = loop.create_future()
        self._unblocked = asyncio.Event()
        self._unblocked.set()
        self._pika: _JoiningConnection

    @classmethod
    async def open(cls, parameters: pika.URLParameters) -> "Connection":
        connection = cls()
        connection._pika = _JoiningConnection(
            parameters,
            on_open_callback=lambda _: _settle(connection._opened, None),
            on_open_error_callback=lambda _, error: _settle(connection._closed, _opening_failed(parameters, error)),
            on_close_callback=lambda _, error: _settle(connection._closed, _lost(error)),
            custom_ioloop=asyncio.get_running_loop(),
        )
        connection._pika.add_on_connection_blocked_callback(lambda *_: connection._unblocked.clear())
        connection._pika.add_on_connection_unblocked_callback(lambda *_: connection._unblocked.set())
        await connection._first(connection._opened, OPEN_SECONDS * 2)
        return connection

    @property
    def server(self) -> str:
        """Product and version."""
        said = self._pika.server_properties or {}
        return f"{said.get('product', 'unknown')} {said.get('version', '')}".strip()

    @property
    def is_blocked(self) -> bool:
        """The server takes no messages now: it is short of memory or disk."""
        return not self._unblocked.is_set()

    async def until_unblocked(self) -> None:
        await self.until(self._unblocked)

    async def until(self, event: asyncio.Event, seconds: float | None = None) -> bool:
        """True once it is set, False after `seconds`; raises when the connection is lost before."""
        waiting: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
        both: set[asyncio.Future[Any]] = {waiting, self._closed}
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._closed.done():
            raise self._closed.result()
        return event.is_set()

    async def until_lost(self) -> NoReturn:
        raise await asyncio.shield(self._closed)

    async def channel(self) -> "Channel":
        opened: asyncio.Future[PikaChannel] = asyncio.get_running_loop().create_future()
        try:
            self._pika.channel(on_open_callback=lambda channel: _settle(opened, channel))
        except pika.exceptions.AMQPError as error:
            raise ConnectionFailedError(f"The connection to RabbitMQ is closed ({type(error).__name__}).") from error
        return Channel(await self._first(opened), self)

    def send(self, frames: bytes) -> None:
        """Past pika's own encoder."""
        self._pika.send(frames)

    async def close(self) -> None:
        """Nothing more is heard of it; what was not settled goes to others."""
        if self._pika.is_open:
            self._pika.close()
        if not self._closed.done():
            await asyncio.wait({self._closed}, timeout=2)

    async def _first(self, wanted: "asyncio.Future[Any]", seconds: float | None = None) -> Any:
        """What `wanted` brings, unless the connection is lost before."""
        await asyncio.wait({wanted, self._closed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        wanted.cancel()
        raise self._closed.result() if self._closed.done() else ConnectionFailedError(
            f"RabbitMQ did not answer in {seconds:.0f} s."
        )  # fmt: skip


class Channel:
    """An open channel. Each method raises the error that closed it, or its connection."""

    def __init__(self, channel: PikaChannel, connection: Connection) -> None:
        self._channel = channel
        self._connection = connection
        self._closed: asyncio.Future[QueueError] = asyncio.get_running_loop().create_future()
        channel.add_on_close_callback(lambda _, error: _settle(self._closed, _channel_closed(error)))

    async def until_closed(self) -> NoReturn:
        raise await asyncio.shield(self._closed)

    async def declare_exchange(self, name: str) -> None:
        await self._ask(self._channel.exchange_declare, name, exchange_type="fanout", durable=True)

    async def declare_queue(self, name: str, arguments: Mapping[str, Any]) -> None:
        await self._ask(self._channel.queue_declare, name, durable=True, arguments=dict(arguments))

    async def count_messages(self, queue: str) -> int:
        """Those that wait in the queue; raises `ChannelFailedError` with code 404 where there is no such queue."""
        frame = await self._ask(self._channel.queue_declare, queue, passive=True)
        return int(frame.method.message_count)

    async def delete_queue(self, name: str) -> None:
        await self._ask(self._channel.queue_delete, name)

    async def bind(self, queue: str, exchange: str) -> None:
        await self._ask(self._channel.queue_bind, queue, exchange)

    async def confirm(self, settled: Callable[[int, bool, bool], None], returned: Callable[[str | None], None]) -> None:
        """From now on the server confirms what is published: `settled` is told the number of a message, counted from 1,
        whether all before it are meant too, and whether it was taken; before that, `returned` the id of one that no
        queue takes."""
        self._channel.add_on_return_callback(lambda _, __, properties, ___: returned(properties.message_id))
        await self._ask(
            lambda callback: self._channel.confirm_delivery(
                lambda frame: settled(
                    frame.method.delivery_tag, frame.method.multiple, isinstance(frame.method, Basic.Ack)
                ),
                callback=callback,
            )
        )

    def publish(self, queue: str, body: bytes, *, id: str, type: str, content_type: str, traceparent: str) -> None:
        """Durably, through the default exchange; what no queue takes is returned."""
        shared = outline(
            self._channel.channel_number,
            queue,
            type=type,
            content_type=content_type,
            traceparent=traceparent,
        )
        self._do(lambda: self._send(shared.fill(id, body)))

    async def consume(
        self, queue: str, prefetch: int, arrived: Callable[[Arrival], None], ended: Callable[[], None]
    ) -> str:
        """The consumer's tag. `ended`: the server has ended it, the queue being gone."""

        def deliver(_: PikaChannel, method: Basic.Deliver, __: BasicProperties, body: bytes) -> None:
            assert method.delivery_tag is not None
            arrived(Arrival(queue, method.delivery_tag, bool(method.redelivered), body))

        await self._ask(self._channel.basic_qos, prefetch_count=prefetch)
        self._channel.add_on_cancel_callback(lambda _: ended())
        frame = await self._ask(self._channel.basic_consume, queue, deliver)
        return str(frame.method.consumer_tag)

    async def cancel(self, consumer: str) -> None:
        await self._ask(self._channel.basic_cancel, consumer)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        self._do(lambda: self._channel.basic_ack(tag, multiple))

    def requeue(self, tag: int) -> None:
        self._do(lambda: self._channel.basic_nack(tag, requeue=True))

    def reject(self, tag: int) -> None:
        """To the dead letters."""
        self._do(lambda: self._channel.basic_reject(tag, requeue=False))

    async def close(self) -> None:
        if self._channel.is_open:
            self._channel.close()
            await asyncio.wait({self._closed}, timeout=2)

    def _send(self, frames: bytes) -> None:
        if not self._channel.is_open:
            raise pika.exceptions.ChannelWrongStateError("The channel is closed.")
        self._connection.send(frames)

    async def _ask(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._do(lambda: method(*arguments, callback=lambda frame: _settle(answered, frame), **named))
        both: set[asyncio.Future[Any]] = {answered, self._closed}
        await asyncio.wait(both, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if answered.done():
            return answered.result()
        if self._closed.done():
            raise self._closed.result()
        raise ConnectionFailedError(f"RabbitMQ did not answer in {ANSWER_SECONDS:.0f} s.")

    def _do(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except pika.exceptions.AMQPError as error:
            if self._closed.done():
                raise self._closed.result() from error
            raise ConnectionFailedError(f"The channel to RabbitMQ is closed ({type(error).__name__}).") from error


def reasons(errors: BaseExceptionGroup[Any]) -> str:
    """What went wrong, each thing once."""
    return "; ".join(dict.fromkeys(str(error) for error in _leaves(errors)))


def _leaves(errors: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _settle(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _opening_failed(parameters: pika.URLParameters, error: str | BaseException) -> ConnectionFailedError:
    where = f"{parameters.host}:{parameters.port}"
    causes = list(_causes(error))
    for cause in reversed(causes):
        match cause:
            case pika.exceptions.ProbableAuthenticationError() | pika.exceptions.AuthenticationError():
                return ConnectionFailedError(f"RabbitMQ at {where} refuses this user or password. Correct the login.")
            case pika.exceptions.ProbableAccessDeniedError():
                vhost = parameters.virtual_host
                return ConnectionFailedError(
                    f"RabbitMQ at {where} has no vhost {vhost!r} for this user. Add the vhost, or grant it."
                )
            case pika.exceptions.IncompatibleProtocolError() if parameters.ssl_options:
                return ConnectionFailedError(
                    f"RabbitMQ at {where} ends TLS connections at once: it does not accept our certificate, or is not "
                    "up yet. Check WHARF_AMQP_CERT_FILE and WHARF_AMQP_KEY_FILE."
                )
            case pika.exceptions.IncompatibleProtocolError():
                return ConnectionFailedError(f"What answers at {where} is not RabbitMQ, or speaks TLS only.")
            case ssl.SSLError():
                return ConnectionFailedError(
                    f"RabbitMQ at {where}: TLS failed ({cause}). Check WHARF_AMQP_CA_FILE and the host's name."
                )
            case OSError():
                return ConnectionFailedError(f"RabbitMQ at {where} does not answer ({cause.strerror or cause}).")
    return ConnectionFailedError(f"RabbitMQ at {where} does not answer ({type(causes[-1]).__name__}).")


def _causes(error: object) -> Iterator[object]:
    """The error and all that pika has wrapped in it, the innermost last."""
    yield error
    for inner in (*getattr(error, "exceptions", ()), getattr(error, "exception", None), *getattr(error, "args", ())):
        if isinstance(inner, BaseException):
            yield from _causes(inner)


def _lost(error: BaseException) -> ConnectionFailedError:
    match error:
        case pika.exceptions.ConnectionClosed():
            return ConnectionFailedError(f"RabbitMQ closed the connection: {error.reply_code} {error.reply_text}.")
    return ConnectionFailedError(f"The connection to RabbitMQ was lost ({type(error).__name__}).")


def _channel_closed(error: BaseException) -> QueueError:
    match error:
        case pika.exceptions.ChannelClosed():
            return ChannelFailedError(error.reply_code, error.reply_text)
        case pika.exceptions.ConnectionClosed():
            return _lost(error)
    return ConnectionFailedError(f"The connection to RabbitMQ was lost ({type(error).__name__}).")


def _channel_advice(code: int) -> str:
    match code:
        case 403:
            return "Grant this user the right: docs/operations.md lists what each process needs."
        case 404:
            return "A relay makes it: start `wharf relay`."
        case 406:
            return "The queue was made with other arguments: let it run empty and delete it, and a relay makes it anew."
    return "RabbitMQ's log says more."
