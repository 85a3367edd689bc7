"""The RabbitMQ of the tests: it keeps its word, forgets only when told to, and leaves nothing running."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import psutil
import pytest
from pika.exceptions import AMQPConnectionError, ProbableAccessDeniedError, ProbableAuthenticationError

from tests.support.rabbitmq import RabbitMQ, require_rabbitmq

ROOT = Path(__file__).parents[2]
DURABLE = pika.BasicProperties(delivery_mode=2)
DECLARED_SECONDS = 3
"""From then on a quorum queue outlives a kill. RabbitMQ writes the list of them down about 1 s after the declaration;
one that is missing there has no leader after a restart, and what was confirmed in it is lost."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """One to be stopped and killed. It shows certificates, and wants to see one."""
    require_rabbitmq()
    with RabbitMQ(tmp_path_factory.mktemp("own"), tls=True, client_certificates=True) as node:
        yield node


def publish(url: str, queue: str, body: bytes) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", queue, body, DURABLE)


def read(url: str, queue: str) -> bytes:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        method, _, body = next(channel.consume(queue, inactivity_timeout=10))
        assert method is not None, f"nothing in {queue}"
        channel.basic_ack(method.delivery_tag)
        return body


def tree(node: RabbitMQ) -> list[psutil.Process]:
    """The node's server with all that it started, and its epmd."""
    server = psutil.Process(node.pid)
    leader = server.parent()
    assert leader is not None
    return [leader, *leader.children(recursive=True)]


def gone(processes: list[psutil.Process], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.02)
    return False


def test_a_vhost_starts_empty_and_belongs_to_one_test(rabbitmq, vhost, amqp_url):
    publish(amqp_url, "q", b"mine")
    another = rabbitmq.new_vhost()
    assert another != vhost
    assert rabbitmq.ctl("list_queues", "-p", another, "name") == ""
    assert rabbitmq.ctl("list_queues", "-p", vhost, "name") == "q"
    assert read(amqp_url, "q") == b"mine"


def test_a_wrong_password_and_an_unknown_vhost_are_refused(rabbitmq):
    with pytest.raises(ProbableAuthenticationError):
        pika.BlockingConnection(pika.URLParameters(rabbitmq.url(password="wrong")))
    with pytest.raises(ProbableAccessDeniedError):
        pika.BlockingConnection(pika.URLParameters(rabbitmq.url("nowhere")))


def test_a_failing_command_says_what_it_was_and_why(rabbitmq):
    with pytest.raises(RuntimeError, match=r"rabbitmqctl delete_vhost nowhere: .*not"):
        rabbitmq.ctl("delete_vhost", "nowhere")


def test_a_confirmed_message_outlives_a_kill_and_an_orderly_stop(own):
    url = own.url()
    publish(url, "q", b"kept")
    time.sleep(DECLARED_SECONDS)
    processes = tree(own)
    own.kill()
    assert gone(processes)
    own.start()
    own.restart()
    assert read(url, "q") == b"kept"


def test_a_stop_leaves_nothing_running_and_the_port_closed(own):
    processes = tree(own)
    assert {"epmd", "beam.smp"} <= {process.name() for process in processes}
    own.stop()
    try:
        assert gone(processes)
        with pytest.raises(AMQPConnectionError):
            pika.BlockingConnection(pika.URLParameters(own.url()))
    finally:
        own.start()


def test_a_wipe_forgets_messages_and_vhosts_but_not_who_may_enter(own):
    vhost = own.new_vhost()
    publish(own.url(vhost), "q", b"lost")
    with pytest.raises(RuntimeError, match="Stop or kill"):
        own.wipe()
    own.kill()
    own.wipe()
    own.start()
    assert own.ctl("list_vhosts", "name") == "/"
    publish(own.url(own.new_vhost()), "q", b"new")


def test_tls_lets_in_who_shows_a_certificate_and_nobody_else(own):
    assert own.certificates is not None
    context = ssl.create_default_context(cafile=str(own.certificates.authority.certificate))
    parameters = pika.URLParameters(own.url(tls=True))
    parameters.ssl_options = pika.SSLOptions(context, "localhost")
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(parameters)
    context.load_cert_chain(own.certificates.client.certificate, own.certificates.client.key)
    with pika.BlockingConnection(parameters) as connection:
        assert connection.is_open
    parameters.ssl_options = pika.SSLOptions(ssl.create_default_context(), "localhost")
    with pytest.raises((AMQPConnectionError, ssl.SSLCertVerificationError)):
        pika.BlockingConnection(parameters)


def test_an_idle_node_uses_no_cpu_to_speak_of(own):
    time.sleep(1)
    began = own.cpu_seconds()
    time.sleep(2)
    assert own.cpu_seconds() - began < 0.4
    assert 10_000_000 < own.memory_bytes() < 1_000_000_000


def test_a_start_that_fails_says_why_and_leaves_nothing_running(tmp_path):
    require_rabbitmq()
    node = RabbitMQ(tmp_path, settings={"tcp_listeners": "nonsense"})
    children = psutil.Process().children()
    with pytest.raises(RuntimeError, match=r"(?s)RabbitMQ did not start\. .*rabbitmq\.log"):
        node.start()
    assert psutil.Process().children() == children


def test_a_test_run_that_is_killed_takes_its_node_with_it(tmp_path):
    require_rabbitmq()
    program = f"""
from pathlib import Path
from tests.support.rabbitmq import RabbitMQ
node = RabbitMQ(Path({str(tmp_path)!r}))
node.start()
print(node.pid, flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout
        pid = owner.stdout.readline()
        processes = psutil.Process(owner.pid).children(recursive=True)
        assert int(pid) in {process.pid for process in processes}
        os.kill(owner.pid, signal.SIGKILL)
    assert gone(processes)
