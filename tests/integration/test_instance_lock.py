"""The lock on a process's name, where the database is in trouble."""

import socket

import pytest

from custody.errors import CustodyError
from custody.instance import InstanceLock
from tests.e2e.service import free_port
from tests.support.proxy import Proxy


async def test_a_name_cannot_be_had_while_the_database_is_away_which_is_said() -> None:
    with pytest.raises(CustodyError, match="does not answer") as told:
        await _take(free_port())
    assert told.value.code == "database_unavailable"


async def test_a_database_that_takes_connections_and_never_answers_is_away_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Proxy(server.getsockname()[1]) as proxy:
        proxy.freeze()
        with pytest.raises(CustodyError, match="does not answer"):
            await _take(proxy.port)


async def _take(port: int) -> None:
    async with InstanceLock(f"postgresql://nobody@127.0.0.1:{port}/wharf", kind="cleanup", instance="it"):
        pass
