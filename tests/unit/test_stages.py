"""What a request tells of the time it took."""

import re
import time
from typing import Any

import pytest

from broker.metrics import BrokerMetrics
from broker.stages import Stages, stage, tell
from broker.tracing import RequestTracing


def told(header: str) -> dict[str, float]:
    assert re.fullmatch(r"[a-z]+;dur=\d+\.\d(, [a-z]+;dur=\d+\.\d)*", header)
    return {name: float(value) for name, value in re.findall(r"([a-z]+);dur=([\d.]+)", header)}


def test_a_stage_within_another_interrupts_it_and_none_is_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: clock.now_ns)
    stages = Stages()
    clock.wait(1)
    with stage("receive"):
        clock.wait(20)
        with stage("probe"):
            clock.wait(200)
        clock.wait(30)
    assert told(stages.header()) == {"receive": 50.0, "probe": 200.0, "total": 251.0}
    assert [each.name for each in stages.ended] == ["receive", "probe", "receive"]
    for one, following in zip(stages.ended, stages.ended[1:], strict=False):
        assert one.began_ns <= one.ended_ns == following.began_ns


async def test_a_stage_that_fails_is_told_all_the_same() -> None:
    stages = Stages()
    try:
        async with stage("commit"):
            raise RuntimeError("no room")
    except RuntimeError:
        pass
    tell([("queue", 12.34)])
    assert list(told(stages.header())) == ["commit", "queue", "total"]
    assert told(stages.header())["queue"] == 12.3


async def test_each_request_tells_its_own_stages_and_a_probe_none() -> None:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with stage(scope["path"].strip("/")):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(dict(message["headers"]))

    tracing = RequestTracing(app, BrokerMetrics())
    for path, route in (("/one", None), ("/two", None), ("/livez", "/livez")):
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "route": route and Route(route)}
        await tracing(scope, None, send)  # type: ignore[arg-type]
    one, two, probe = (headers.get(b"server-timing", b"").decode() for headers in sent)
    assert (list(told(one)), list(told(two)), probe) == (["one", "total"], ["two", "total"], "")


class Clock:
    now_ns = 1_000_000_000

    def wait(self, milliseconds: int) -> None:
        self.now_ns += milliseconds * 1_000_000


class Route:
    def __init__(self, path: str) -> None:
        self.path = path
