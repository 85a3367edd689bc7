"""What a request tells of the time it took."""

import re
import time
from typing import Any

from broker.metrics import BrokerMetrics
from broker.stages import Stages, stage, tell
from broker.tracing import RequestTracing


def told(header: str) -> dict[str, float]:
    assert re.fullmatch(r"[a-z]+;dur=\d+\.\d(, [a-z]+;dur=\d+\.\d)*", header)
    return {name: float(value) for name, value in re.findall(r"([a-z]+);dur=([\d.]+)", header)}


def test_a_stage_within_another_interrupts_it_and_none_is_counted_twice() -> None:
    stages = Stages()
    with stage("receive"):
        time.sleep(0.02)
        with stage("probe"):
            time.sleep(0.2)
        time.sleep(0.02)
    milliseconds = told(stages.header())
    assert list(milliseconds) == ["receive", "probe", "total"]
    assert milliseconds["probe"] >= 200
    assert 40 <= milliseconds["receive"] < 200
    assert milliseconds["receive"] + milliseconds["probe"] <= milliseconds["total"] + 0.2
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


class Route:
    def __init__(self, path: str) -> None:
        self.path = path
