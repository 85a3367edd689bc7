"""Every pod of a namespace is killed, its nodes are drained and its brokers replaced, while clients write down what
they are promised.

The nodes are one machine, and clients come to a broker by `Balancer`, which asks each for its readiness: how soon a
cluster's own proxies hear of an end is not seen here."""

import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import starter_model
from contracts.rendering import STARTER_MODEL
from tests.e2e import boxes
from tests.e2e.ledger import Ledger, clients
from tests.e2e.service import Service, until
from tests.e2e.wire import connection, head
from tests.images import rendering
from tests.images.node import ADDRESSES, Manifest, Node, Pod
from tests.images.podman import Podman
from tests.support.balancer import Balancer
from tests.support.proxy import Proxy
from wharfinger import Client

pytestmark = pytest.mark.timeout(2400)

PAGE = starter_model.PAGE.read_bytes()
VALUES = {
    "broker": {"leaveSeconds": 2},
    "pools": [{"name": "digits", "model": STARTER_MODEL}],
    "settings": {"CLEANUP_GRACE_SECONDS": 0},
}
PORT = 8000
PAUSE_SECONDS = 0.3
PROMISES = 8
# Of the bytes that each sends to the database.
AMID_MIGRATION, AMID_CLEANUP = 20_000, 4_000


def test_whatever_pod_is_killed_evicted_or_replaced_every_promise_is_kept(
    podman: Podman, images: Mapping[str, str], secrets: list[Manifest], volume: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pods"
    folder.mkdir()
    objects = [*rendering.chart(images, tmp_path, VALUES), *secrets]
    with (
        maintenance_line(secrets) as line,
        ThreadPoolExecutor(12) as threads,
        Node(podman, folder, objects, claims={rendering.CLAIM: volume}, user=None, addressed=True) as node,
        Balancer([(address, PORT) for address in ADDRESSES]) as balancer,
    ):
        key, database = node.secret(rendering.ADMIN_KEY)["api-key"], node.secret("wharfinger-database")["owner-url"]
        service = Service(f"http://127.0.0.1:{balancer.port}", key.decode(), database.decode(), volume)
        broker, relay, worker = (node.find("Deployment", kind) for kind in ("broker", "relay", "worker"))

        starts = [threads.submit(node.start, workload) for workload in (broker, relay, worker, broker, relay)]
        until(lambda: waiting(podman, node) == len(starts), "all wait for the migration", 60)
        node.kill(node.pods[0])
        migration = threads.submit(node.finish, node.find("Job", "migrate"))
        kill_amid(node, "migrate", line, AMID_MIGRATION)
        assert (migration.result().killed, node.pods[0].killed) == (1, 1)
        pods = [start.result() for start in starts]

        with clients(service, PAGE, PAUSE_SECONDS) as ledger, patient_client(service, ledger):
            for pod in pods:
                until(lambda: len(balancer.ready) == 2, "both brokers are ready")
                broken = ledger.broken
                with going_on(ledger, f"{pod.name} was killed"), ExitStack() as sending:
                    if pod.main["name"] == "broker":
                        sending.enter_context(half_upload(service, ledger, pod))
                    node.kill(pod)
                    node.restart(pod)
                assert pod.main["name"] == "broker" or ledger.broken == broken

            expired = upload_for_a_moment(service, ledger)
            with going_on(ledger, "a cleanup was killed"):
                cleanup = threads.submit(node.finish, node.find("CronJob", "cleanup"))
                kill_amid(node, "cleanup", line, AMID_CLEANUP)
                cleanup.result()
            assert [pod.killed for pod in node.pods if "cleanup" in pod.name] == [1, 0]
            assert not expired.exists()

            until(lambda: len(balancer.ready) == 2, "both brokers are ready")
            broken = ledger.broken
            with going_on(ledger, "two nodes were drained"):
                [first, *_] = drain(node, threads, [broker, relay, worker], pods[:3])
                [second, _] = drain(node, threads, [broker, relay], pods[3:])
            with going_on(ledger, "the brokers were replaced"):
                for old in (first, second):
                    node.start(broker)
                    node.stop(old)
            assert len(balancer.ready) == 2
        print(f"{len(ledger.files)} files, {len(ledger.jobs)} jobs; {ledger.broken} connections broke")  # noqa: T201
        assert (ledger.refusals, ledger.broken) == (set(), broken)
        ledger.check(service, boxes.digits())


@contextmanager
def maintenance_line(secrets: Sequence[Manifest]) -> Iterator[Proxy]:
    """From now on the migration and the cleanups come to the database by this one."""
    [database] = [secret for secret in secrets if secret["metadata"]["name"] == "wharfinger-database"]
    urls = database["stringData"]
    port = urlsplit(urls["owner-url"]).port
    assert port is not None
    with Proxy(port) as line:
        for key in ("owner-url", "cleanup-url"):
            urls[key] = urls[key].replace(f":{port}/", f":{line.port}/")
        yield line


def waiting(podman: Podman, node: Node) -> int:
    return sum("waits_for_migration" in podman.log(pod.container) for pod in list(node.pods) if pod.container)


def kill_amid(node: Node, component: str, line: Proxy, sent: int) -> None:
    """The pod of a Job, when it has sent so many bytes to the database."""
    until(lambda: component in node.pods[-1].name, f"{component} has a pod")
    pod = node.pods[-1]
    until(lambda: len(pod.logs) == len(pod.spec.get("initContainers", [])), f"{pod.name} has waited", 60)
    began = line.bytes_up
    until(lambda: line.bytes_up > began + sent, f"{pod.name} is at work")
    line.freeze()
    node.kill(pod)
    line.heal()


@contextmanager
def going_on(ledger: Ledger, what: str) -> Iterator[None]:
    """Promises are given after the body too."""
    began = time.monotonic()
    yield
    before = ledger.promises
    until(lambda: ledger.promises >= before + PROMISES, f"promises are given after {what}")
    print(f"{what}: {time.monotonic() - began:.1f} s, {ledger.broken} connections broken")  # noqa: T201


@contextmanager
def patient_client(service: Service, ledger: Ledger) -> Iterator[None]:
    """What users have: none of its calls fails, whatever happens to a broker."""
    over = threading.Event()

    def predict() -> None:
        with Client(service.url, api_key=ledger.key) as client:
            while not over.wait(PAUSE_SECONDS):
                ledger.jobs[str(client.predict(PAGE + random.randbytes(1000), wait=0).id)] = 1

    with ThreadPoolExecutor(1) as thread:
        predicting = thread.submit(predict)
        try:
            yield
        finally:
            over.set()
        predicting.result()


@contextmanager
def half_upload(service: Service, ledger: Ledger, pod: Pod) -> Iterator[None]:
    """A broker has bytes of a file that will never be whole."""
    with connection(f"http://{pod.address}:{PORT}") as opened:
        opened.sendall(head("POST", "/v1/files", ledger.key, "Content-Length: 9000000") + PAGE + bytes(3_000_000))
        until(
            lambda: any(name.startswith(f"{pod.name}.") for name in service.staged()),
            f"{pod.name} has staged some of them",
        )
        yield


def upload_for_a_moment(service: Service, ledger: Ledger) -> Path:
    """Where the bytes of a file lie that has expired."""
    with Client(service.url, api_key=ledger.key) as client:
        sha256 = client.upload(PAGE + random.randbytes(1000), expires_in=1).sha256
    time.sleep(1.5)
    path = service.volume / "blobs" / "sha256" / sha256[:2] / sha256[2] / sha256
    assert path.exists()
    return path


def drain(node: Node, threads: Executor, workloads: Sequence[Manifest], pods: Sequence[Pod]) -> list[Pod]:
    """All pods of a node are evicted, and each is made anew elsewhere meanwhile."""
    new = [threads.submit(node.start, workload) for workload in workloads]
    evicted = [threads.submit(node.stop, pod) for pod in pods]
    for end in evicted:
        end.result()
    return [start.result() for start in new]
