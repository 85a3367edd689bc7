"""The policy of batches, by a clock that is computed."""

from random import Random

import pytest

from bench.batching import Batch, Picture, affine, schedule
from inference_worker.batch_policy import BatchPolicy, MeasuredLatency

FIXED, EACH = 0.008, 0.001
DEVICE = affine(FIXED, EACH)


def ready(*times: float) -> list[Picture]:
    """Pictures that come as if from nowhere."""
    return [Picture(announced=time, ready=time) for time in times]


def test_lone_picture_goes_at_once() -> None:
    assert schedule(ready(0.5), BatchPolicy(8, 1.0), DEVICE) == [Batch(0.5, (0,))]


def test_those_who_came_while_the_device_worked_go_together() -> None:
    pictures = ready(0.0, 0.001, 0.002, 0.003)
    assert schedule(pictures, BatchPolicy(8, 0.0), DEVICE) == [Batch(0.0, (0,)), Batch(FIXED + EACH, (1, 2, 3))]


def test_no_batch_is_larger_than_allowed() -> None:
    batches = schedule(ready(*[0.0] * 10), BatchPolicy(4, 0.0), DEVICE)
    assert [len(batch.places) for batch in batches] == [4, 4, 2]


def test_device_waits_for_a_picture_that_is_being_decoded() -> None:
    pictures = [Picture(0.0, 0.003), Picture(0.002, 0.005)]
    assert schedule(pictures, BatchPolicy(8, 0.010), DEVICE) == [Batch(0.005, (0, 1))]


def test_device_does_not_wait_where_the_next_comes_too_late_for_either_bound() -> None:
    pictures = [Picture(0.0, 0.003), Picture(0.002, 0.005)]
    assert schedule(pictures, BatchPolicy(8, 0.001), DEVICE)[0] == Batch(0.003, (0,))
    saves_little = affine(0.001, 0.010)
    assert schedule(pictures, BatchPolicy(8, 1.0), saves_little)[0] == Batch(0.003, (0,))


def test_picture_that_never_comes_holds_the_others_back_for_what_it_would_save_at_most() -> None:
    """Its decoder met the end of the file, or takes longer than others did."""
    policy = BatchPolicy(8, 1.0)
    hold = policy.hold_seconds(1, 0.0, 0.0, DEVICE)
    assert hold == pytest.approx(FIXED)
    assert policy.hold_seconds(1, hold, 0.0, DEVICE) == 0


def test_device_that_gains_nothing_gets_one_at_a_time_and_never_waits() -> None:
    def cpu(size: int) -> float:
        return 0.030 * size * (1 if size == 1 else 1.1)

    policy = BatchPolicy(8, 1.0)
    assert policy.size(8, cpu) == 1
    assert policy.hold_seconds(1, 0.0, 0.0, cpu) == 0


def test_batch_stops_growing_where_more_give_no_more_a_second() -> None:
    def saturated(size: int) -> float:
        return 0.004 * max(1.0, size / 4)

    assert BatchPolicy(8, 1.0).size(8, saturated) == 4


@pytest.mark.parametrize("seed", range(40))
def test_no_picture_is_held_back_for_longer_than_allowed_or_than_a_batch_saves(seed: int) -> None:
    random = Random(seed)
    device = affine(random.uniform(0, 0.02), random.uniform(0.0005, 0.01))
    policy = BatchPolicy(random.randint(1, 16), random.choice([0, 0.001, 0.005, 0.1]))
    now, pictures = 0.0, []
    for _ in range(300):
        now += random.expovariate(random.choice([20, 200, 2000]))
        pictures.append(Picture(now, now + random.uniform(0.001, 0.02)))
    batches = schedule(pictures, policy, device)
    assert sorted(place for batch in batches for place in batch.places) == list(range(300))
    free = 0.0
    for batch in batches:
        size = len(batch.places)
        assert 1 <= size <= policy.max_batch
        assert batch.start >= free - 1e-9
        saved = max(device(each) + device(1) - device(each + 1) for each in range(1, size + 1))
        for place in batch.places:
            held = batch.start - max(free, pictures[place].ready)
            assert held <= min(policy.max_delay_seconds, saved) + 1e-9
        free = batch.start + device(size)


def test_latency_is_learnt_and_drawn_straight_between_what_was_seen() -> None:
    latency = MeasuredLatency()
    latency.observe(1, 0.010)
    assert (latency(1), latency(3)) == (0.010, pytest.approx(0.030))
    latency.observe(9, 0.018)
    assert latency(5) == pytest.approx(0.014)
    for _ in range(50):
        latency.observe(1, 0.002)
    assert latency(1) == pytest.approx(0.002, rel=0.01)
