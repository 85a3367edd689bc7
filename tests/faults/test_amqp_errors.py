"""What an operator gets wrong: the relay stays up, says what to mend, never a secret, and goes on once it is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pytest

from broker.relay.release import DELETED_SECONDS
from custody.transport.topology import DEAD_LETTERS, queue_of
from custody.wire import Priority
from tests.e2e.service import Part, answers, until
from tests.faults.conftest import NewFleet
from tests.faults.fleet import FAST, POOL, Fleet, is_ready, through
from tests.support.certificates import Certificates
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

SAID_SECONDS = 10
MENDED_SECONDS = 40


@dataclass(frozen=True)
class Queued:
    fleet: Fleet
    node: RabbitMQ

    def relay(self, amqp_url: str, **settings: str) -> Part:
        """Not started yet, with a name and a log of its own."""
        folder = self.fleet.installation.folder
        name = f"relay-{len(list(folder.glob('relay-*.log')))}"
        return self.fleet.installation.relay(name, amqp_url, **{**FAST, **settings})

    @property
    def certificates(self) -> Certificates:
        assert self.node.certificates is not None
        return self.node.certificates


@pytest.fixture(scope="module")
def queued(new_fleet: NewFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queued]:
    """With a worker, and no relay yet."""
    require_rabbitmq()
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq"), tls=True, client_certificates=True) as node:
        fleet = new_fleet(node)
        fleet.worker("w1", WHARF_AMQP_URL=node.url())
        yield Queued(fleet, node)


@contextmanager
def faulty(queued: Queued, amqp_url: str, *words: str, **settings: str) -> Iterator[Part]:
    """A relay that says these words in its log and in /health/detailed; the body mends what is wrong. Afterwards a job
    that was submitted before ends."""
    part = queued.relay(amqp_url, **settings)
    port = part.environment["WHARF_HEALTH_PORT"]
    try:
        part.start()
        part.until(lambda: answers(f"http://127.0.0.1:{port}/livez"))
        part.until(lambda: all(word in part.output() for word in words), SAID_SECONDS)
        assert not is_ready(part)
        until(lambda: all(word in fault(queued.fleet, part) for word in words), f"health says {words}", SAID_SECONDS)
        warnings = queued.fleet.health()["warnings"]
        assert any(fault(queued.fleet, part) in warning for warning in warnings)
        for said in (part.output(), str(queued.fleet.health())):
            assert queued.node.password not in said
            assert "SECRET" not in said
        yield part
        part.until(lambda: is_ready(part), MENDED_SECONDS)
        until(lambda: fault(queued.fleet, part) == "", "health is well again", SAID_SECONDS)
        assert "Traceback" not in part.output()
    finally:
        part.stop()


def fault(fleet: Fleet, relay: Part) -> str:
    faults = {known["name"]: known["fault"] for known in fleet.health()["relays"]}
    return faults.get(relay.name) or ""


def recovers(queued: Queued, name: str) -> None:
    tenant, over_at = queued.fleet.tenant(), time.monotonic()
    tenant.submit(1)
    queued.fleet.recovers(name, over_at, [tenant])


def test_a_wrong_password_is_mended_in_its_file(queued: Queued, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("SECRET, and wrong\n")
    url = queued.node.url().replace(queued.node.password, "SECRET")
    words = ("refuses this user or password", f"127.0.0.1:{queued.node.port}", "Correct the login")
    with faulty(queued, url, *words, WHARF_AMQP_PASSWORD_FILE=str(password)):
        password.write_text(f"{queued.node.password}\n")
        recovers(queued, "wrong password")


def test_a_missing_password_file_is_named(queued: Queued, tmp_path: Path) -> None:
    password = tmp_path / "password"
    words = (str(password), "No such file")
    with faulty(queued, queued.node.url(), *words, WHARF_AMQP_PASSWORD_FILE=str(password)):
        password.write_text(queued.node.password)
        recovers(queued, "no password file")


def test_a_missing_vhost_is_added(queued: Queued) -> None:
    """No worker is on it: that the relay makes its queues there is all that it can do."""
    url = queued.node.url("fleet")
    with faulty(queued, url, "has no vhost", "'fleet'", "Add the vhost, or grant it"):
        queued.node.ctl("add_vhost", "fleet")
        queued.node.ctl("set_permissions", "-p", "fleet", queued.node.user, ".*", ".*", ".*")
        until(lambda: queue_of(POOL, Priority.BATCH) in queued.node.ctl("list_queues", "-p", "fleet", "name"), "queues")


def test_a_rabbitmq_that_cannot_be_reached_may_come_later(queued: Queued) -> None:
    with Proxy(queued.node.port) as proxy:
        url = through(queued.node.url(), proxy.port)
        proxy.cut()
        with faulty(queued, url, f"127.0.0.1:{proxy.port} does not answer", "refused"):
            proxy.heal()
            recovers(queued, "RabbitMQ unreachable")


def test_an_unknown_host_is_named(queued: Queued) -> None:
    url = queued.node.url().replace("127.0.0.1", "rabbitmq.invalid")
    part = queued.relay(url)
    try:
        part.start()
        part.until(lambda: "rabbitmq.invalid" in part.output() and "does not answer" in part.output(), SAID_SECONDS)
        part.until(lambda: "rabbitmq.invalid" in fault(queued.fleet, part), SAID_SECONDS)
        assert not is_ready(part)
        assert "Traceback" not in part.output()
    finally:
        part.stop()


@pytest.mark.parametrize("queue", [queue_of(POOL, Priority.INTERACTIVE), DEAD_LETTERS])
def test_a_queue_with_other_arguments_is_named_and_made_anew_once_it_is_deleted(queued: Queued, queue: str) -> None:
    other = {"x-queue-type": "quorum", "x-delivery-limit": 5}
    with pika.BlockingConnection(pika.URLParameters(queued.node.url())) as connection:
        channel = connection.channel()
        channel.queue_delete(queue)
        time.sleep(DELETED_SECONDS * 2)
        channel.queue_declare(queue, durable=True, arguments=other)
        try:
            with faulty(queued, queued.node.url(), "406", queue, "delete it"):
                connection.process_data_events()
                channel.queue_delete(queue)
                recovers(queued, f"{queue} with other arguments")
        finally:
            channel.queue_delete(queue)


def test_tls_with_a_certificate_of_ours_and_theirs_works(queued: Queued) -> None:
    client = queued.certificates.client
    part = queued.fleet.relay(
        "encrypted",
        queued.node.url(tls=True),
        WHARF_AMQP_CA_FILE=str(queued.certificates.authority.certificate),
        WHARF_AMQP_CERT_FILE=str(client.certificate),
        WHARF_AMQP_KEY_FILE=str(client.key),
    )
    try:
        recovers(queued, "none: TLS with both certificates")
    finally:
        queued.fleet.dismiss(part)


def test_an_unknown_authority_is_refused_until_it_is_known(queued: Queued, tmp_path: Path) -> None:
    client = queued.certificates.client
    known = tmp_path / "ca.pem"
    known.write_text(Certificates(tmp_path / "others").authority.certificate.read_text())
    settings = {
        "WHARF_AMQP_CA_FILE": str(known),
        "WHARF_AMQP_CERT_FILE": str(client.certificate),
        "WHARF_AMQP_KEY_FILE": str(client.key),
    }
    with faulty(queued, queued.node.url(tls=True), "TLS failed", "WHARF_AMQP_CA_FILE", **settings):
        known.write_text(queued.certificates.authority.certificate.read_text())
        recovers(queued, "unknown authority")


def test_a_certificate_that_rabbitmq_does_not_know_is_replaced_in_its_file(queued: Queued, tmp_path: Path) -> None:
    ours, others = queued.certificates, Certificates(tmp_path / "others").client
    shown = tmp_path / "client.pem"
    shown.write_text(others.certificate.read_text() + others.key.read_text())
    settings = {
        "WHARF_AMQP_CA_FILE": str(ours.authority.certificate),
        "WHARF_AMQP_CERT_FILE": str(shown),
    }
    with faulty(
        queued, queued.node.url(tls=True), "TLS", "does not accept our certificate", "WHARF_AMQP_CERT_FILE", **settings
    ):
        shown.write_text(ours.client.certificate.read_text() + ours.client.key.read_text())
        recovers(queued, "unknown client certificate")


def test_plain_amqp_to_a_port_that_speaks_tls_is_told(queued: Queued) -> None:
    url = queued.node.url().replace(f":{queued.node.port}/", f":{queued.node.tls_port}/")
    part = queued.relay(url)
    try:
        part.start()
        part.until(lambda: "TLS" in part.output(), SAID_SECONDS)
        part.until(lambda: "TLS" in fault(queued.fleet, part), SAID_SECONDS)
        assert not is_ready(part)
        assert urlsplit(url).password not in part.output()
    finally:
        part.stop()
