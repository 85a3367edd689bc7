"""What strangers send does not become a series of its own."""

from typing import Any

from broker.metrics import BrokerMetrics
from broker.tracing import RequestTracing


async def test_whatever_method_and_path_comes_there_is_one_series_for_it() -> None:
    metrics = BrokerMetrics()
    tracing = RequestTracing(answers_405, metrics)
    for number, method in enumerate(("PROPFIND", "MKCOL", "M-SEARCH", "SOURCE")):
        await tracing({"type": "http", "method": method, "path": f"/{number}", "headers": []}, receives, sends)
    await tracing({"type": "http", "method": "GET", "path": "/", "headers": []}, receives, sends)
    [family] = metrics.requests.collect()
    totals = {tuple(each.labels.values()): each.value for each in family.samples if each.name.endswith("_total")}
    assert totals == {("other", "unknown", "405"): 4, ("GET", "unknown", "405"): 1}


async def answers_405(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 405, "headers": []})


async def receives() -> dict[str, Any]:
    return {"type": "http.disconnect"}


async def sends(message: Any) -> None:
    pass
