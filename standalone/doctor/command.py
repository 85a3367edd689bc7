"""`wharf doctor`: looks at the set-up from outside, and says what to do about what it finds."""

import asyncio
import json
import os
import shutil
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import httpx
import typer

from broker import kubernetes
from broker.kubernetes import Kubernetes, KubernetesError
from custody.cleanup import list_runs
from custody.database import Database, Transaction, describe, may_read
from custody.errors import CustodyError, StartError
from custody.installation import check_volume, sweep_off
from custody.models import list_models
from custody.notices import are_heard
from custody.pressure import ADVICE as PRESSURE_ADVICE
from custody.settings import PressureSettings, QueueSettings, load
from custody.transport.connection import Connection, Login, QueueError
from custody.volume import Usage, Volume
from inference_worker.cpus import granted_cpus
from standalone.doctor import trial, two_pods
from standalone.doctor.cluster import SHOWN, look_at_cluster
from standalone.doctor.finding import Finding
from standalone.folder import socket_of_running
from standalone.postgres import url_on
from wharfinger import discovery
from wharfinger.commands.failures import explain
from wharfinger.commands.output import say
from wharfinger.errors import WharfError

SKEW_SECONDS = 2.0
ROLES = {"broker": "wharf_api", "relay": "wharf_relay", "worker": "wharf_worker"}
"""That each process must have, and no other."""


@dataclass(frozen=True)
class SetUp:
    """Where to look. None: it could not be found out."""

    data: Path | None
    database_url: str | None
    volume: Path | None
    direct_url: str | None = None


def doctor(
    data: Annotated[Path | None, typer.Option(help="The folder of `wharf up`, if not the usual one")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Instead of all that: ask the server for the boxes on two pictures")
    ] = False,
    image: Annotated[
        Path | None, typer.Option(help="With --predict: the picture instead, on which there is something to be found")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --predict: the model, if not the server's default")] = None,
    server: Annotated[
        str | None,
        typer.Option(
            envvar="WHARF_URL", metavar="URL", help="The server; otherwise WHARF_SERVER, or that of `wharf up`"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of lines")] = False,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Look at a Kubernetes namespace, as kubectl would reach it")
    ] = False,
    namespace: Annotated[
        str | None, typer.Option(help="With --cluster: where, if not where the login is at home")
    ] = None,
    release: Annotated[str | None, typer.Option(help="With --cluster: of several releases, this one")] = None,
    probe: Annotated[str | None, typer.Option(hidden=True, help="In a pod of --cluster: PART:MEETING")] = None,
) -> None:
    """Check database, volume, queue, clock, models, server and secrets; status 1 where something is at fault.

    Looks at the `wharf up` of this machine, or at WHARF_DATABASE_URL and WHARF_VOLUME,
    and at RabbitMQ where WHARF_AMQP_URL is set. With --predict it needs the server and WHARF_API_KEY alone.

    With --cluster: at rights, pods, KEDA and Prometheus; from a pod of each process at database and queue;
    from two pods at the volume and the clocks."""
    if probe is not None:
        typer.echo(json.dumps([asdict(finding) for finding in _probe(_set_up(data), probe)]))
        return
    if cluster:
        findings = [*_cluster(namespace, release)]
    elif predict:
        findings = [*_server(server), *_prediction(server, image, model)]
    elif image or model:
        raise typer.BadParameter("--image and --model go with --predict")
    else:
        findings = _all(_set_up(data), server)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.state:<8} {finding.subject:<9} {finding.detail}")
            if finding.advice:
                typer.echo(f"{'':18} -> {finding.advice}")
    if any(finding.state == "fault" for finding in findings):
        sys.exit(1)


def _cluster(namespace: str | None, release: str | None) -> Iterator[Finding]:
    # As Ctrl-C does, so that what was made in the cluster is taken away.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield from look_at_cluster(Kubernetes.connect(namespace=namespace, usual=True), release, tell=say)
    except KubernetesError as error:
        yield Finding("cluster", "fault", str(error), "Try `kubectl get pods` with the same login.")


def _probe(set_up: SetUp, probe: str) -> Iterator[Finding]:
    """What a pod of --cluster finds. `probe`: the process whose URLs it has, or its part in a meeting of two."""
    part, _, meeting = probe.partition(":")
    if part in ("write", "read"):
        yield from asyncio.run(_database(set_up, role="wharf_cleanup"))
        yield from _guarded("volume", _volume(set_up))
        assert set_up.volume is not None
        yield from _guarded("two pods", (two_pods.write if part == "write" else two_pods.read)(set_up.volume, meeting))
        return
    yield from asyncio.run(_database(replace(set_up, volume=None), role=ROLES[part]))
    yield from asyncio.run(_notices(set_up))
    yield from asyncio.run(_queue())
    if part == "broker":
        yield from _view()


def _view() -> Iterator[Finding]:
    """Of the cluster, as brokers have it for GET /v1/cluster."""
    if not (kubernetes.SERVICE_ACCOUNT / "token").exists():
        yield Finding("rights", "ok", "no token: GET /v1/cluster shows heartbeats alone, until cluster.enabled is set")
        return
    try:
        reached = Kubernetes.connect()
        missing = [str(right) for right in SHOWN if not reached.may(*right)]
    except KubernetesError as error:
        yield Finding(
            "rights", "warning", f"GET /v1/cluster shows heartbeats alone: {error}",
            "Does a network policy let brokers reach the API server?",
        )  # fmt: skip
        return
    if missing:
        advice = "Set cluster.enabled in the chart's values, which makes a Role for it."
        yield Finding("rights", "warning", f"GET /v1/cluster lacks the rights {', '.join(missing)}", advice)
    else:
        yield Finding("rights", "ok", "GET /v1/cluster may see pods and Deployments")


def _all(set_up: SetUp, server: str | None) -> list[Finding]:
    return [
        *_machine(),
        *_secrets(set_up),
        *asyncio.run(_database(set_up)),
        *asyncio.run(_notices(set_up)),
        *_guarded("volume", _volume(set_up)),
        *asyncio.run(_queue()),
        *_server(server),
    ]


def _set_up(data: Path | None) -> SetUp:
    if data is None and "WHARF_DATABASE_URL" in os.environ:
        volume = os.environ.get("WHARF_VOLUME")
        url = os.environ["WHARF_DATABASE_URL"]
        direct = os.environ.get("WHARF_DIRECT_DATABASE_URL", url)
        return SetUp(None, url, Path(volume) if volume else None, direct)
    folder = data or discovery.current_data_folder()
    running = socket_of_running(folder / "postgres")
    return SetUp(folder, url_on(running, "wharf_api", "wharf") if running else None, folder / "volume")


def _machine() -> Iterator[Finding]:
    yield Finding("machine", "ok", f"Python {sys.version.split()[0]} on {sys.platform}, {granted_cpus()} CPUs granted")
    if sys.platform == "darwin":
        yield Finding(
            "machine",
            "warning",
            "macOS: a `wharf up` that is killed with -9 leaves its processes running",
            "The next `wharf up` on the same folder ends them.",
        )


def _secrets(set_up: SetUp) -> Iterator[Finding]:
    if set_up.data is None:
        return
    key = set_up.data / discovery.KEY_FILE
    if not key.exists():
        yield Finding("secrets", "fault", f"{key} is missing", f"Start the service once: wharf up --data {set_up.data}")
    elif stat.S_IMODE(key.stat().st_mode) & 0o077:
        yield Finding("secrets", "fault", f"others can read {key}", f"chmod 600 {key}; then make a new key")
    else:
        yield Finding("secrets", "ok", f"{key} is for its owner only")


async def _database(set_up: SetUp, *, role: str | None = None) -> list[Finding]:
    """`role`: that we must have; None: any but the owner's."""
    if set_up.database_url is None:
        return [Finding("database", "fault", f"no service runs in {set_up.data}", "Start it with `wharf up`.")]
    try:
        async with Database(set_up.database_url, name="wharf doctor", role=role, size=1, prepares=False) as database:
            return await _look_inside(database, set_up.volume)
    except StartError as error:
        return [Finding("database", "fault", *_first_line_and_rest(str(error)))]
    except CustodyError as error:
        return [Finding("database", "fault", error.detail)]


async def _notices(set_up: SetUp) -> list[Finding]:
    """Whether a process hears of what another has done: by way of a pooler it would find out seconds later."""
    if set_up.direct_url is None:
        return []
    try:
        heard = await are_heard(set_up.direct_url)
    except CustodyError as error:
        return [Finding("notices", "fault", error.detail)]
    if heard:
        return [Finding("notices", "ok", "what one connection tells the database, another hears")]
    return [
        Finding(
            "notices",
            "fault",
            "what one connection tells the database, no other hears: a transaction pooler is in between",
            "Set WHARF_DIRECT_DATABASE_URL to the server itself (database.directKeySuffix in the chart's values).",
        )
    ]


async def _look_inside(database: Database, volume: Path | None) -> list[Finding]:
    async with database.transaction() as transaction:
        server = await describe(transaction)
        findings = [Finding("database", "ok", f"PostgreSQL {server.version} answers {server.user}")]
        findings.append(_clock("the database's", abs(server.clock - time.time())))
        # Not every process's role may look at everything.
        if await may_read(transaction, "cleanup_runs"):
            findings += await _cleanups(transaction)
        if await may_read(transaction, "models", "workers"):
            findings += await _models(transaction)
        if volume is not None:
            try:
                await check_volume(transaction, Volume(volume, instance="doctor"))
            except StartError as error:
                findings.append(Finding("volume", "fault", *_first_line_and_rest(str(error))))
    return findings


async def _models(transaction: Transaction) -> list[Finding]:
    models = await list_models(transaction)
    findings = []
    for model in models:
        living = f"{model.name}: version {model.versions[0].version}, {model.ready_workers} living workers"
        advice = "" if model.ready_workers else "Its jobs wait: start `wharf worker` with WHARF_MODEL set to it."
        findings.append(Finding("model", "ok" if model.ready_workers else "warning", living, advice))
    if not models:
        findings.append(Finding("model", "warning", "none is registered", "Start a worker with WHARF_MODEL=FILE.onnx."))
    return findings


async def _cleanups(transaction: Transaction) -> list[Finding]:
    runs = await list_runs(transaction, 1)
    if not runs:
        return [Finding("cleanup", "warning", "none has run yet", "Run `wharf cleanup --every 300`, or on a schedule.")]
    (last,) = runs
    told = f"the last one began {last.started_at:%Y-%m-%d %H:%M} UTC: {last.stopped or 'it runs'}, {last.errors} errors"
    failed = last.errors > 0 or last.stopped in ("error", "killed")
    advice = "See `wharf cleanup --history`." if failed else ""
    findings = [Finding("cleanup", "warning" if failed else "ok", told, advice)]
    if off := await sweep_off(transaction):
        findings.append(
            Finding(
                "cleanup",
                "warning",
                f"orphans are only reported: {off.reason}",
                "Look with `wharf verify`, then `wharf verify --accept`.",
            )
        )
    return findings


def _volume(set_up: SetUp) -> Iterator[Finding]:
    """What the protocol relies on, tried: write, sync, rename, sync of the folder, and what a reader then sees."""
    if set_up.volume is None or not set_up.volume.is_dir():
        yield Finding(
            "volume", "fault", f"{set_up.volume or 'WHARF_VOLUME'} is no folder", "Set WHARF_VOLUME, mount it."
        )
        return
    yield _room(set_up.volume)
    probe = set_up.volume / "staging" / f"doctor.{uuid4().hex}"
    moved = probe.with_suffix(".moved")
    began = time.monotonic()
    try:
        with probe.open("wb") as file:
            file.write(b"wharfinger")
            file.flush()
            os.fsync(file.fileno())
        probe.rename(moved)
        written = moved.stat().st_mtime
        same = moved.read_bytes() == b"wharfinger"
    finally:
        for path in (probe, moved):
            path.unlink(missing_ok=True)
    took = (time.monotonic() - began) * 1000
    state = "ok" if same else "fault"
    yield Finding("volume", state, f"{set_up.volume}: write, sync, rename and read took {took:.0f} ms")
    yield _clock("the file server's", abs(written - time.time()))


def _room(volume: Path) -> Finding:
    disk = shutil.disk_usage(volume)
    usage = Usage(disk.used, disk.free)
    marks = load(PressureSettings).watermarks
    room = f"{usage.free / 2**30:.1f} GiB of {usage.total / 2**30:.1f} GiB free"
    if usage.free < marks.free_at_high(usage):
        return Finding("volume", "warning", f"{room}: uploads are refused", PRESSURE_ADVICE)
    if usage.free < marks.free_at_low(usage):
        return Finding("volume", "warning", f"{room}: soon uploads are refused, or still are", PRESSURE_ADVICE)
    return Finding("volume", "ok", room)


async def _queue() -> list[Finding]:
    settings = load(QueueSettings)
    if settings.amqp_url is None:
        return []
    try:
        connection = await Connection.open(Login.of(settings).parameters("wharf doctor"))
    except QueueError as error:
        return [Finding("queue", "fault", str(error))]
    try:
        return [Finding("queue", "ok", f"{connection.server} lets us in")]
    finally:
        await connection.close()


def _server(server: str | None) -> Iterator[Finding]:
    try:
        connection = discovery.find(server)
        answer = httpx.get(f"{connection.server}/readyz", timeout=5, trust_env=not connection.local)
    except httpx.HTTPError as error:
        yield Finding("server", "fault", f"no answer: {error}", "Start it with `wharf up` or `wharf broker`.")
        return
    if answer.status_code == 200:
        yield Finding("server", "ok", f"{connection.server} is ready")
    else:
        yield Finding("server", "fault", f"{connection.server} is not ready: {answer.text}", "See the checks it names.")


def _prediction(server: str | None, image: Path | None, model: str | None) -> Iterator[Finding]:
    pictures = {str(image): image} if image else trial.pictures()
    began = time.monotonic()
    try:
        job = trial.submit(server, list(pictures.values()), model)
    except OSError as error:
        yield Finding("predict", "fault", f"{image} cannot be read: {error.strerror}", "Name a picture with --image.")
        return
    except WharfError as error:
        yield Finding("predict", "fault", *_first_line_and_rest(explain(error)))
        return
    took = time.monotonic() - began
    if not job.state.ended or job.results is None:
        paused = "See GET /health/detailed: its pool may be paused, or much waits before it."
        advice = paused if job.ready_workers else f"No worker serves {job.model}: start one."
        yield Finding("predict", "fault", f"{job.model}: no answer within {took:.0f} s", advice)
        return
    for shown, result in zip(pictures, job.results, strict=True):
        if result.detections is None:
            fault = result.error.detail if result.error else result.state
            yield Finding("predict", "fault", f"{job.model}, {shown}: {fault}", "See the log of its workers.")
        else:
            found = Counter(detection.label for detection in result.detections)
            told = ", ".join(f"{number} {label}" for label, number in found.items()) or "nothing found"
            yield Finding("predict", "ok", f"{job.model}, {shown}: {told}, {took:.1f} s")
    if not any(result.detections for result in job.results):
        # A picture that somebody chose for the model is another matter than ours, which it may not know.
        state = "fault" if image else "warning"
        advice = "Name a picture on which the model finds something with --image, or another model with --model."
        yield Finding("predict", state, f"{job.model} answered, and found nothing: no box was checked", advice)


def _clock(whose: str, skew: float) -> Finding:
    if skew < SKEW_SECONDS:
        return Finding("clock", "ok", f"within {SKEW_SECONDS:.0f} s of {whose}")
    return Finding(
        "clock", "warning", f"{skew:.1f} s away from {whose}", "Run a time service (chrony) on every machine."
    )


def _guarded(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except OSError as error:
        yield Finding(subject, "fault", f"{error}", "Check the mount, its permissions and its room.")


def _first_line_and_rest(text: str) -> tuple[str, str]:
    first, _, rest = text.partition("\n")
    return first, rest
