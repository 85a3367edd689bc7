"""The proxy with which the tests of faults break the network: it must itself be beyond doubt."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.service import until
from tests.support.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets, and after the end of that, `bye`."""

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while chunk := connection.recv(65536):
                    connection.sendall(chunk)
                connection.sendall(b"bye")
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            servers.append(threading.Thread(target=serve, args=(connection,)))
            servers[-1].start()

    servers: list[threading.Thread] = []
    listener = socket.create_server(("127.0.0.1", 0))
    acceptor = threading.Thread(target=accept)
    acceptor.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    acceptor.join()
    for server in servers:
        server.join()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        yield client


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def exactly(client: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size and (chunk := client.recv(65536)):
        received += chunk
    return bytes(received)


def silent(client: socket.socket, seconds: float = 0.2) -> bool:
    client.settimeout(seconds)
    try:
        return client.recv(1) is None
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)


def test_it_forwards_all_bytes_both_ways_and_counts_them(proxy, client):
    sent = bytes(range(256)) * 4096
    sender = threading.Thread(target=client.sendall, args=(sent,))
    sender.start()
    assert exactly(client, len(sent)) == sent
    sender.join()
    # Counted once they are handed on: they may have arrived before.
    until(lambda: (proxy.bytes_up, proxy.bytes_down) == (len(sent), len(sent)), "all are counted")
    assert (proxy.accepted, proxy.open) == (1, 1)


def test_an_end_is_forwarded_and_the_last_bytes_before_it_arrive(proxy, client):
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert exactly(client, 100) == b"lastbye"
    ended = time.monotonic() + 5
    while proxy.open and time.monotonic() < ended:
        time.sleep(0.01)
    assert proxy.open == 0


def test_a_cut_resets_connections_and_refuses_new_ones_until_healed(proxy, client):
    client.sendall(b"a")
    assert exactly(client, 1) == b"a"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.heal()
    with connect(proxy) as again:
        again.sendall(b"b")
        assert exactly(again, 1) == b"b"


def test_frozen_connections_stay_and_nothing_arrives_until_healed(proxy, client):
    client.sendall(b"a")
    assert exactly(client, 1) == b"a"
    proxy.freeze()
    client.sendall(b"b")
    assert silent(client)
    with connect(proxy) as another:
        another.sendall(b"c")
        assert silent(another)
        proxy.heal()
        assert exactly(client, 1) == b"b"
        assert exactly(another, 1) == b"c"


def test_the_end_of_a_frozen_connection_is_not_seen_on_the_other_side(echo):
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy(server.getsockname()[1]) as proxy:
        client = connect(proxy)
        served, _ = server.accept()
        with served:
            proxy.freeze()
            client.close()
            assert silent(served)
            proxy.heal()
            served.settimeout(5)
            assert served.recv(1) == b""


def test_a_cut_ends_a_frozen_connection(proxy, client):
    client.sendall(b"a")
    assert exactly(client, 1) == b"a"
    proxy.freeze()
    client.sendall(b"b")
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_delay_holds_each_chunk_up_in_both_directions(proxy, client):
    proxy.delay(0.1)
    began = time.monotonic()
    client.sendall(b"a")
    assert exactly(client, 1) == b"a"
    assert 0.2 <= time.monotonic() - began < 2
    proxy.heal()
    began = time.monotonic()
    client.sendall(b"a")
    assert exactly(client, 1) == b"a"
    assert time.monotonic() - began < 0.2


def test_half_closed_upwards_the_server_reads_the_end_and_its_answers_still_arrive(proxy, client):
    client.sendall(b"a")
    assert exactly(client, 1) == b"a"
    proxy.half_close("up")
    client.sendall(b"lost")
    assert exactly(client, 100) == b"bye"


def test_half_closed_downwards_the_client_reads_the_end_and_what_it_sends_still_arrives(proxy, client):
    client.sendall(b"a")
    assert exactly(client, 1) == b"a"
    proxy.half_close("down")
    assert client.recv(1) == b""
    client.sendall(b"heard")
    deadline = time.monotonic() + 5
    while proxy.bytes_up < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (proxy.bytes_up, proxy.bytes_down) == (6, 1)


def test_a_server_that_is_away_resets_the_client():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Proxy(nobody.getsockname()[1]) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as client:
            client.recv(1)


def test_a_closed_proxy_leaves_no_thread_and_closes_twice(proxy, client):
    proxy.close()
    proxy.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "proxy"]
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_a_unix_socket_is_reached_by_tcp(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        with Proxy(tmp_path / "socket") as proxy, connect(proxy) as client:
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"there")
                assert accepted.recv(100) == b"there"
                accepted.sendall(b"and back")
                assert client.recv(100) == b"and back"
