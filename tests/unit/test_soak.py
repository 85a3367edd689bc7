"""What `make soak` takes for growth."""

from dataclasses import replace

import pytest

from tests.faults.chaos.usage import Moment, Usage
from tests.faults.soak.samples import Sample, growths

MIB = 1 << 20
STEP = 50_000
QUIET = Usage(resident_bytes=90 * MIB, descriptors=40, threads=24, children=0, forlorn=())


def sample(number: int, held: Usage, connections: int = 4) -> Sample:
    moment = Moment({"broker-1": held}, {"wharf_api": 16}, 0, connections, 8, 0)
    return Sample(number * STEP, float(number), moment, 180 * MIB, 120 * MIB, {}, 0, 0, 0)


def leaks(samples: list[Sample]) -> list[str]:
    return [growth.name for growth in growths(samples) if growth.is_leak]


def test_a_warm_up_and_what_comes_and_goes_are_no_growth() -> None:
    comes_and_goes = [replace(QUIET, resident_bytes=(90 + number % 2) * MIB) for number in range(11, 21)]
    warms_up = [replace(QUIET, resident_bytes=40 * MIB, descriptors=4) for _ in range(10)]
    assert leaks([sample(number, held) for number, held in enumerate([*warms_up, *comes_and_goes], 1)]) == []


@pytest.mark.parametrize(
    ("leaky", "named"),
    [
        (lambda n: replace(QUIET, resident_bytes=90 * MIB + n * STEP * 100), "broker-1: bytes"),
        (lambda n: replace(QUIET, descriptors=40 + n * STEP // 10_000), "broker-1: descriptors"),
        (lambda n: replace(QUIET, threads=24 + n), "broker-1: threads"),
    ],
)
def test_what_a_request_leaves_behind_is_growth(leaky: object, named: str) -> None:
    assert callable(leaky)
    assert leaks([sample(number, leaky(number)) for number in range(1, 21)]) == [named]


def test_a_connection_that_is_never_closed_is_growth() -> None:
    assert leaks([sample(number, QUIET, connections=4 + number) for number in range(1, 21)]) == [
        "RabbitMQ: connections"
    ]
