"""A worker does not start where RabbitMQ would take its deliveries away before it can be done with them."""

from pathlib import Path

import pytest

from custody.errors import StartError
from custody.settings import load
from inference_worker.command import check_consumer_timeout
from inference_worker.settings import WorkerSettings

GIVEN = {"database_url": "postgresql://", "volume": Path(), "model": "digits"}


@pytest.mark.parametrize(
    ("task_seconds", "prefetch", "timeout", "starts"),
    [(30, 1, 1800, True), (450, 1, 1800, True), (451, 1, 1800, False), (30, 30, 1800, False), (900, 0, 1800, True)],
)
def test_the_longest_task_with_its_turn_awaited_takes_half_of_the_timeout_at_most(
    task_seconds: float, prefetch: int, timeout: float, starts: bool
) -> None:
    settings = load(
        WorkerSettings,
        **GIVEN,
        amqp_url="amqp://rabbitmq/",
        task_seconds=task_seconds,
        prefetch=prefetch,
        amqp_consumer_timeout_seconds=timeout,
    )
    if starts:
        check_consumer_timeout(settings)
        return
    with pytest.raises(StartError, match=r"WHARF_TASK_SECONDS.*consumer_timeout"):
        check_consumer_timeout(settings)


def test_without_rabbitmq_there_is_no_such_limit() -> None:
    check_consumer_timeout(load(WorkerSettings, **GIVEN, amqp_url=None, task_seconds=7200))
