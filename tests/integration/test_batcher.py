"""Pictures of several threads on a device of fixed latency, which has a real engine behind it."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from custody.wire import Detection, Parameters
from inference_worker.batch_policy import BatchPolicy
from inference_worker.batcher import Batcher
from inference_worker.decode import Picture
from inference_worker.engines.openvino import OpenVINOEngine
from inference_worker.outcomes import Corrupt, Done, Failed, Retry
from tests.contract.test_engine_contract import dense
from tests.integration.test_slots import GREY, running, until, work
from tests.support.engines import BATCH_ENGINE, CRASHING, ENVIRONMENT, GREEDY, HANGING, RAISING, FakeDevice

WIDTHS = range(96, 112)


def picture(width: int = 96, colour: tuple[int, int, int] = GREY) -> Picture:
    return Picture(np.full((64, width, 3), colour, dtype=np.uint8), width, 64)


class Harness:
    def __init__(self, device: FakeDevice, max_batch: int = 8, max_delay_seconds: float = 0.005) -> None:
        self.device = device
        self.batcher = Batcher(device, BatchPolicy(max_batch, max_delay_seconds))
        self.batcher.warm_up()
        device.sizes.clear()

    def ask(self, pictures: Sequence[Picture], parameters: Sequence[Parameters]) -> list[Future[list[Detection]]]:
        """Each from a thread of its own, all while the device has another picture. `device.sizes` are theirs alone."""
        self.device.gate.clear()
        with ThreadPoolExecutor(1 + len(pictures)) as threads:
            other = threads.submit(self.batcher.infer, picture(), Parameters())
            self.until(lambda: len(self.device.sizes) == 1)
            asked = []
            for each, wanted in zip(pictures, parameters, strict=True):
                asked.append(threads.submit(self.batcher.infer, each, wanted))
                self.until(lambda: len(self.batcher._waiting) == len(asked))
            self.device.gate.set()
        assert other.result()
        del self.device.sizes[0]
        return asked

    def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < give_up, "it did not come to pass"
            time.sleep(0.001)


@pytest.fixture
def device(tmp_path: Path) -> FakeDevice:
    return FakeDevice(dense(tmp_path), 1, "f32")


def alone(tmp_path: Path, asked: Picture, parameters: Parameters) -> list[Detection]:
    return OpenVINOEngine(tmp_path / "model.onnx", 1, "f32").infer(asked, parameters)


def test_each_of_a_batch_gets_its_own_answer_by_its_own_parameters(device: FakeDevice, tmp_path: Path) -> None:
    pictures = [picture(width) for width in WIDTHS]
    parameters = [Parameters(conf=0.1 if place % 2 else 0.6) for place in range(len(pictures))]
    answers = Harness(device).ask(pictures, parameters)
    expected = [alone(tmp_path, each, wanted) for each, wanted in zip(pictures, parameters, strict=True)]
    assert [answer.result() for answer in answers] == expected
    assert len({repr(each) for each in expected}) > 8
    assert device.sizes == [8, 8]


def test_broken_picture_is_told_and_spoils_no_mate(device: FakeDevice) -> None:
    pictures = [picture(width, RAISING if width == 100 else GREY) for width in WIDTHS]
    answers = Harness(device).ask(pictures, [Parameters()] * len(pictures))
    with pytest.raises(RuntimeError, match="all green"):
        answers.pop(4).result()
    assert all(answer.result() for answer in answers)
    assert device.sizes == [8, *[1] * 8, 8]


def test_batch_without_room_is_halved_until_it_fits(device: FakeDevice) -> None:
    pictures = [picture(width, GREEDY if width == 99 else GREY) for width in range(96, 104)]
    answers = Harness(device).ask(pictures, [Parameters()] * 8)
    assert all(answer.result() for answer in answers)
    assert device.sizes == [8, 4, 2, 2, 1, 1, 4]


def test_device_that_has_no_room_for_the_largest_batch_gets_smaller_ones(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = device.infer_batch

    def small(prepared: Sequence[Picture], parameters: Sequence[Parameters]) -> list[list[Detection]]:
        if len(prepared) > 3:
            raise MemoryError
        return whole(prepared, parameters)

    monkeypatch.setattr(device, "infer_batch", small)
    harness = Harness(device, max_batch=8)
    assert harness.batcher.at_once == 2 * 2
    answers = harness.ask([picture(width) for width in WIDTHS], [Parameters()] * len(WIDTHS))
    assert all(answer.result() for answer in answers)
    assert device.sizes == [2] * 8


def test_device_that_answers_for_fewer_than_it_was_given_is_asked_about_each(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = device.infer_batch
    harness = Harness(device)
    monkeypatch.setattr(device, "infer_batch", lambda several, wanted: whole(several[:1], wanted[:1]))
    answers = harness.ask([picture(width) for width in WIDTHS], [Parameters()] * len(WIDTHS))
    assert all(answer.result() for answer in answers)


def test_one_that_is_expected_is_taken_along_and_one_that_fails_before_is_not_waited_for(device: FakeDevice) -> None:
    harness = Harness(device, max_delay_seconds=60.0)
    harness.batcher._latency.observe(1, 1000.0)  # so that a mate saves much
    decoded, refused = threading.Event(), threading.Event()

    def late() -> list[Detection]:
        with harness.batcher.expected():
            decoded.wait()
            return harness.batcher.infer(picture(), Parameters())

    def broken() -> None:
        with harness.batcher.expected():
            refused.wait()
            raise ValueError("no picture at all")

    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(late)]
        failing = threads.submit(broken)
        harness.until(lambda: len(harness.batcher._expected) == 2)
        answers.append(threads.submit(harness.batcher.infer, picture(), Parameters()))
        harness.until(lambda: len(harness.batcher._waiting) == 1)
        decoded.set()
        harness.until(lambda: len(harness.batcher._waiting) == 2)
        refused.set()
        assert answers[0].result(timeout=30) == answers[1].result(timeout=30)
        with pytest.raises(ValueError, match="no picture"):
            failing.result()
    assert device.sizes == [2]


# In a slot


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    dense(tmp_path)
    return tmp_path


async def test_slot_takes_a_batch_and_answers_each_by_itself(volume: Path) -> None:
    async with running(volume, 1, engine=BATCH_ENGINE, max_batch=4, max_delay_ms=5.0) as slots:
        assert slots.places == 8
        works = [work(volume, RAISING if width == 100 else GREY, width=width) for width in WIDTHS]
        (volume / works[7].path).write_bytes(b"no picture")
        outcomes = await asyncio.gather(*(slots.run(each) for each in works))
        assert isinstance(outcomes.pop(7), Corrupt)
        assert isinstance(outcomes.pop(4), Failed)
        done = [outcome for outcome in outcomes if isinstance(outcome, Done)]
        assert [outcome.width for outcome in done] == [width for width in WIDTHS if width not in (100, 103)]
        assert max(outcome.batch_size for outcome in done) > 1
        assert all(outcome.detections for outcome in done)


async def test_slot_on_a_device_that_gains_nothing_looks_at_one_at_a_time(volume: Path) -> None:
    async with running(volume, 1, engine="openvino", max_batch=8, max_delay_ms=5.0) as slots:
        assert slots.places == 1


@pytest.mark.parametrize("fatal", [CRASHING, HANGING])
async def test_picture_that_kills_its_process_leaves_its_mates_to_be_tried_again(
    fatal: tuple[int, int, int], volume: Path
) -> None:
    async with running(volume, 1, engine=BATCH_ENGINE, max_batch=4, max_delay_ms=5.0, time_limit_seconds=3) as slots:
        works = [work(volume, fatal if place == 2 else GREY) for place in range(4)]
        outcomes = await asyncio.gather(*(slots.run(each) for each in works))
        assert isinstance(outcomes[2], Retry)
        assert all(isinstance(outcome, Done | Retry) for outcome in outcomes)
        await until(lambda: slots.ready_count == 1)
        assert slots.places == 8
        again = await asyncio.gather(*(slots.run(work(volume)) for _ in range(8)))
        assert all(isinstance(outcome, Done) for outcome in again)
