"""A fleet of real processes, tenants who give it work, and the account of what they were promised."""

import io
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import starter_model
from custody.transport.topology import DEAD_LETTERS, queue_of
from custody.wire import Priority
from tests.e2e.service import Installation, Part, Service, start_worker, until
from tests.support.engines import ENVIRONMENT, QUICK_ENGINE
from tests.support.rabbitmq import RabbitMQ

POOL = "digits"
QUEUES = [*(queue_of(POOL, priority) for priority in Priority), DEAD_LETTERS]

FAST: Mapping[str, str] = {"WHARF_LEASE_SECONDS": "3", "WHARF_RECONCILE_SECONDS": "0.5"}
WORKER: Mapping[str, str] = {
    **FAST,
    "WHARF_MODEL": str(starter_model.MODEL),
    "WHARF_ENGINE": QUICK_ENGINE,
    "WHARF_SLOTS": "1",
}

PATIENCE_SECONDS = 90.0
"""For what ends at last; longer than the relay overlooks a lost message among others. How long it took is in the
table."""

Colour = int | tuple[int, int, int]
"""A number is a grey: the milliseconds that `QuickEngine` takes."""


class Tenant:
    """Somebody with a key of their own, and every job that they were promised: its inputs by its id."""

    def __init__(self, service: Service) -> None:
        headers = {"Authorization": f"Bearer {service.new_key()}"}
        self.http = httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False)
        self.jobs: dict[str, int] = {}
        self._files: dict[Colour, str] = {}

    def submit(self, *colours: Colour, priority: Priority = Priority.INTERACTIVE) -> str:
        inputs = [{"sha256": self._file(colour)} for colour in colours]
        answer = self.http.post("/v1/jobs", json={"inputs": inputs, "priority": priority.value})
        assert answer.status_code == 202, answer.text
        job = str(answer.json()["id"])
        self.jobs[job] = len(colours)
        return job

    def job(self, job: str, wait_seconds: float = 0) -> dict[str, Any]:
        answer = self.http.get(f"/v1/jobs/{job}", headers={"Prefer": f"wait={wait_seconds:g}"})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def results(self, job: str) -> list[dict[str, Any]]:
        """Once the job has ended."""
        ended = self.job(job, wait_seconds=60)
        assert ended["finished_at"], ended
        return list(self.http.get(f"/v1/jobs/{job}/results", params={"limit": 1000}).json()["items"])

    def _file(self, colour: Colour) -> str:
        if colour not in self._files:
            picture = io.BytesIO()
            Image.new("RGB", (32, 32), (colour,) * 3 if isinstance(colour, int) else colour).save(picture, "PNG")
            [kept] = self.http.post("/v1/files", content=picture.getvalue()).json()["items"]
            self._files[colour] = kept["sha256"]
        return self._files[colour]


@dataclass(frozen=True)
class Recovery:
    """After a fault: the jobs and inputs that had been acknowledged before its end, and how long after it the next job
    had ended, and all of those."""

    fault: str
    jobs: int
    inputs: int
    next_seconds: float
    all_seconds: float


@dataclass
class Load:
    """Two tenants who submit without a pause; `ended_at`: on the monotonic clock."""

    tenants: list[Tenant]
    milliseconds: int
    errors: list[BaseException] = field(default_factory=list)
    ended_at: float = 0.0

    @property
    def inputs(self) -> int:
        return sum(sum(tenant.jobs.values()) for tenant in self.tenants)

    @contextmanager
    def running(self) -> Iterator[None]:
        over = threading.Event()
        kinds = zip(self.tenants, ((2, Priority.INTERACTIVE), (8, Priority.BATCH)), strict=True)
        threads = [threading.Thread(target=self._submit, args=(tenant, *kind, over)) for tenant, kind in kinds]
        for thread in threads:
            thread.start()
        try:
            yield
            self.ended_at = time.monotonic()
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert self.errors == [], "a broker whose RabbitMQ is in trouble accepts jobs all the same"

    def _submit(self, tenant: Tenant, inputs: int, priority: Priority, over: threading.Event) -> None:
        try:
            while not over.wait(0.1):
                tenant.submit(*[self.milliseconds] * inputs, priority=priority)
        except BaseException as error:  # noqa: BLE001 - raised where the test sees it
            self.errors.append(error)


class Fleet:
    """A broker from the start, relays and workers as they are asked for. `node`: the RabbitMQ whose queues are to be
    empty once all is done; None where there is none. `recoveries`: where each fault is entered. Every input is worked
    on, though pictures come again and again, unless `cache` says otherwise."""

    def __init__(
        self,
        installation: Installation,
        recoveries: list[Recovery],
        node: RabbitMQ | None = None,
        *,
        cache: bool = False,
    ) -> None:
        self.installation = installation
        self.service = installation.migrate()
        self._recoveries = recoveries
        self._node = node
        self._parts = [installation.broker(WHARF_DEFAULT_MODEL=POOL, WHARF_RESULT_CACHE=str(cache))]
        self._tenants: list[Tenant] = []

    def relay(self, name: str, amqp_url: str, **settings: str) -> Part:
        part = self.installation.relay(name, amqp_url, **{**FAST, **settings})
        start_worker(part)
        self._parts.append(part)
        return part

    def worker(self, name: str, **settings: str) -> Part:
        part = self.installation.worker(name, **{**WORKER, **settings})
        start_worker(part)
        self._parts.append(part)
        return part

    def doomed(self, part: Part, module: str, step: str) -> Part:
        """A relay or worker that is killed at one step, not started yet: see `tests.support.relay_killed_at`."""
        part.program, part.arguments = (*part.program[:2], f"tests.support.{module}"), (step,)
        part.environment = {**part.environment, **ENVIRONMENT}
        return part

    def dismiss(self, part: Part) -> None:
        """Ends it, and expects nothing of it any more."""
        part.stop()
        if part in self._parts:
            self._parts.remove(part)

    def bring_back(self, part: Part) -> None:
        """Starts it again, and expects as much of it as before."""
        start_worker(part)
        self._parts.append(part)

    def tenant(self) -> Tenant:
        self._tenants.append(Tenant(self.service))
        return self._tenants[-1]

    def close(self) -> None:
        for tenant in self._tenants:
            tenant.http.close()

    @contextmanager
    def load(self, milliseconds: int = 1) -> Iterator[Load]:
        load = Load([self.tenant(), self.tenant()], milliseconds)
        with load.running():
            until(lambda: self.ended(load) > 10, "the load is under way")
            yield load

    def ended(self, load: Load) -> int:
        """How many inputs of it have ended."""
        jobs = [job for tenant in load.tenants for job in list(tenant.jobs)]
        ended = "SELECT count(*) FROM wharf.tasks WHERE job_id = ANY (%s) AND ended_at IS NOT NULL"
        [(count,)] = self.service.ask(ended, jobs)
        return int(str(count))

    @contextmanager
    def fault(self, name: str, milliseconds: int = 1) -> Iterator[Load]:
        """Work comes in while the body runs, which brings a fault and ends it. Afterwards all that was promised ends
        well, once, and no process has died of it or told of a bug."""
        with self.unharmed():
            with self.load(milliseconds) as load:
                yield load
            self.recovers(name, load.ended_at, load.tenants)
            for tenant in load.tenants:
                for job, inputs in tenant.jobs.items():
                    found = tenant.job(job)
                    assert (found["state"], found["progress"]["done"]) == ("succeeded", inputs), found
                    assert [result["state"] for result in found["results"]] == ["succeeded"] * inputs

    def recovers(self, name: str, over_at: float, tenants: list[Tenant]) -> Recovery:
        """Takes the time from `over_at` until a job that is submitted now has ended, and all that they submitted
        before."""
        acknowledged = {job: inputs for tenant in tenants for job, inputs in tenant.jobs.items()}
        newest = tenants[0].submit(1)
        until(lambda: self._all_ended([newest]), f"after {name}: the next job has ended", PATIENCE_SECONDS)
        next_seconds = time.monotonic() - over_at
        until(lambda: self._all_ended(list(acknowledged)), f"after {name}: every job has ended", PATIENCE_SECONDS)
        all_seconds = time.monotonic() - over_at
        recovery = Recovery(name, len(acknowledged), sum(acknowledged.values()), next_seconds, all_seconds)
        self._recoveries.append(recovery)
        return recovery

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """In the end nothing is stuck or stored twice, and no process has ended but those that the test ended, or told
        of a bug."""
        said = {part.name: part.log.stat().st_size for part in self._parts}
        yield
        until(lambda: self.service.ask("SELECT FROM wharf.tasks WHERE ended_at IS NULL LIMIT 1") == [], "all has ended")
        assert self.service.ask("SELECT id FROM wharf.jobs WHERE state = 'open'") == []
        assert self.service.ask(
            "SELECT t.id, count(r.task_id) FROM wharf.tasks t LEFT JOIN wharf.results r ON r.task_id = t.id"
            " WHERE t.purged_at IS NULL GROUP BY t.id HAVING count(r.task_id) FILTER (WHERE r.attempt = t.attempt)"
            " <> CASE t.state WHEN 'succeeded' THEN 1 ELSE 0 END OR count(r.task_id) > 1"
        ) == []  # fmt: skip
        assert self.service.staged() == []
        if self._node:
            until(lambda: self.waiting() == dict.fromkeys(QUEUES, 0), "no message is left over")
        for part in self._parts:
            words = part.log.read_bytes()[said.get(part.name, 0) :].decode(errors="replace")
            assert "Traceback" not in words, f"{part.name}:\n{words}"
            assert part.process is not None
            assert part.process.poll() is None, f"{part.name} has ended:\n{words}"

    def waiting(self) -> dict[str, int]:
        """The messages in each queue, those included that workers hold."""
        assert self._node is not None
        lines = self._node.ctl("list_queues", "name", "messages").splitlines()
        return {name: int(messages) for name, messages in (line.split() for line in lines)}

    def consumers(self) -> int:
        """Of interactive messages."""
        assert self._node is not None
        lines = self._node.ctl("list_consumers", "queue_name").splitlines()
        return lines.count(queue_of(POOL, Priority.INTERACTIVE))

    def health(self) -> dict[str, Any]:
        with self.service.client() as http:
            return dict(http.get("/health/detailed").json())

    def _all_ended(self, jobs: list[str]) -> bool:
        return self.service.ask("SELECT FROM wharf.jobs WHERE id = ANY (%s) AND state = 'open' LIMIT 1", jobs) == []


def is_ready(part: Part) -> bool:
    return httpx.get(f"{own(part)}/readyz", trust_env=False, timeout=5).status_code == 200


def counted(part: Part, name: str, **labels: str) -> float:
    """What a relay or worker has counted under this name, over all other labels."""
    families = text_string_to_metric_families(httpx.get(f"{own(part)}/metrics", trust_env=False, timeout=5).text)
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def through(url: str, port: int) -> str:
    """The same RabbitMQ by way of a proxy."""
    place = urlsplit(url)
    return url.replace(f":{place.port}/", f":{port}/")


def own(part: Part) -> str:
    return f"http://127.0.0.1:{part.environment['WHARF_HEALTH_PORT']}"
