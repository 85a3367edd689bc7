"""`wharf broker`: the API process, wired."""

import asyncio
import math
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Annotated

import structlog
import typer
import uvicorn
from prometheus_client import start_http_server

from broker.app import build_app
from broker.backlog import Backlog
from broker.cluster import ClusterView
from broker.connection import Connection
from broker.media import Prober
from broker.metrics import BrokerMetrics
from broker.readiness import Readiness
from broker.room import Room
from broker.service import Service
from broker.settings import BrokerSettings
from custody.audit import Audit
from custody.database import Database
from custody.errors import StartError
from custody.files import Files
from custody.installation import check_volume
from custody.instance import InstanceLock
from custody.jobs import Jobs
from custody.notices import Notices
from custody.process import end_within, release, run
from custody.spans import tracing
from custody.tasks import Tasks
from custody.volume import Volume

log = structlog.get_logger()

CLOSE_SECONDS = 5.0
"""After the drain, until the process has ended."""

LAST_ANSWER = (b"connection", b"close")
"""The header of an answer after which its connection ends."""


def broker(
    host: Annotated[str | None, typer.Option(help="Address to listen on (WHARF_HOST)")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (WHARF_PORT)")] = None,
) -> None:
    """Serve the API: uploads, jobs, results. Everything else is set by environment variables."""
    run("broker", BrokerSettings, serve, host=host, port=port)


async def serve(settings: BrokerSettings) -> None:
    async with AsyncExitStack() as stack:
        traced = stack.enter_context(tracing("broker", instance=settings.instance, release=release()))
        database = await stack.enter_async_context(
            Database(
                settings.database_url.get_secret_value(),
                name="wharf broker",
                role="wharf_api",
                size=settings.database_connections,
                prepares=not settings.is_pooled,
            )
        )
        volume = Volume(settings.volume, instance=settings.instance)
        async with database.transaction() as transaction:
            await check_volume(transaction, volume)
        await stack.enter_async_context(InstanceLock(settings.listen_url, kind="broker", instance=settings.instance))
        volume.discard_former()
        room = Room(volume, settings.watermarks)
        notices = await stack.enter_async_context(Notices(settings.listen_url, name="wharf broker"))
        metrics = BrokerMetrics()
        cluster = ClusterView(settings.kubeconfig, instance=settings.instance)
        stack.callback(cluster.close)
        service = Service(
            settings=settings,
            database=database,
            volume=volume,
            files=Files(volume, retention_days=settings.file_retention_days),
            jobs=Jobs(),
            tasks=Tasks(),
            audit=Audit(settings.audit_reads),
            backlog=Backlog(pool_limit=settings.max_pool_backlog, tenant_limit=settings.max_tenant_backlog),
            notices=notices,
            probe=Prober(settings.max_pixels),
            readiness=Readiness(database, volume, room, needs_worker=settings.ready_needs_worker, tell=metrics.tell),
            room=room,
            metrics=metrics,
            cluster=cluster,
            stopping=asyncio.Event(),
        )
        metrics.watch(room)
        watching = asyncio.create_task(room.watch(), name="watch-room")
        stack.callback(watching.cancel)
        counting = asyncio.create_task(service.backlog.watch(database, metrics.tell_backlog), name="watch-backlog")
        stack.push_async_callback(_end, counting)
        if settings.metrics_port:
            _serve_metrics(settings, service)
        server = _Server(
            service,
            uvicorn.Config(
                build_app(service, traced),
                host=settings.host,
                port=settings.port,
                http=_protocol(settings),
                ws="none",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
            ),
        )
        await server.serve()


async def _end(task: asyncio.Task[None]) -> None:
    """Waits for it: its connection goes back before the pool is closed."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _protocol(settings: BrokerSettings) -> type[Connection]:
    return type("Connection", (Connection,), {"head_seconds": settings.request_head_seconds})


def _serve_metrics(settings: BrokerSettings, service: Service) -> None:
    try:
        start_http_server(settings.metrics_port, addr=settings.host, registry=service.metrics.registry)
    except OSError as error:
        raise StartError(
            f"WHARF_METRICS_PORT: {settings.host}:{settings.metrics_port} cannot be listened on: {error.strerror}. "
            "Choose another port."
        ) from error


class _Server(uvicorn.Server):
    """Asked to end, it leaves first: it says at /readyz that it does, and answers for a while what comes all the same,
    each connection for the last time. A second signal cuts that short. Then it takes no more, and lets those who wait
    for a job go with its state as it is. It ends with status 0; uvicorn would send itself the signal once more."""

    def __init__(self, service: Service, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._service = service
        self._leaving: asyncio.TimerHandle | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._leave, number)
        yield

    def _leave(self, number: int) -> None:
        settings = self._service.settings
        self._service.readiness.leave()
        if self._leaving is None and settings.leave_seconds:
            self._leaving = asyncio.get_running_loop().call_later(settings.leave_seconds, self._stop, number)
            # A connection that is closed while a request comes in on it would lose that request.
            self.config.encoded_headers.append(LAST_ANSWER)
            self.server_state.default_headers = [*self.server_state.default_headers, LAST_ANSWER]
            for connection in self.server_state.connections:
                if isinstance(connection, Connection):
                    connection.end_with_this_answer()
            log.info("leaving", seconds=settings.leave_seconds)
            end_within(settings.leave_seconds + settings.drain_seconds + CLOSE_SECONDS)
            return
        if self._leaving is not None:
            self._leaving.cancel()
        self._stop(number)

    def _stop(self, number: int) -> None:
        self._service.stopping.set()
        self._service.notices.wake_all()
        self.handle_exit(number, None)
        end_within(self._service.settings.drain_seconds + CLOSE_SECONDS)
