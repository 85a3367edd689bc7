"""Real slots: processes that hold a real engine, killed and hung by the pictures they are given."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image
from structlog.testing import capture_logs

from custody.errors import StartError
from custody.ids import new_id
from custody.wire import Box, Parameters
from inference_worker.child import LOGGED_LINES
from inference_worker.engines import ModelDescription
from inference_worker.outcomes import Done, Failed, Retry, Work
from inference_worker.slots import Slots
from tests.support.engines import CRASHING, ENVIRONMENT, HANGING, HAZARD_ENGINE, NOISY, RAISING
from tests.support.networks import dense_output, write_network

GREY = (128, 128, 128)
DENSE = dense_output([(24, 32, 32, 32, 0.1, 0.875, 0.0)], classes=3)


@pytest.fixture(autouse=True)
def engines_of_the_tests_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    write_network(tmp_path / "model.onnx", DENSE)
    return tmp_path


def slots(volume: Path, count: int, **settings: object) -> Slots:
    defaults = {
        "engine": HAZARD_ENGINE,
        "model_path": volume / "model.onnx",
        "volume_root": volume,
        "threads": 1,
        "precision": "f32",
        "max_pixels": 10_000_000,
        "read_patience_seconds": 0.1,
        "time_limit_seconds": 30.0,
    }
    return Slots(count, **(defaults | settings))


@asynccontextmanager
async def running(volume: Path, count: int, **settings: object) -> AsyncIterator[Slots]:
    running = slots(volume, count, **settings)
    await running.start()
    try:
        yield running
    finally:
        await running.close()
    assert children() == []


def work(volume: Path, colour: tuple[int, int, int] = GREY, *, width: int = 96, **parameters: float) -> Work:
    name = f"{new_id()}.jpg"
    Image.new("RGB", (width, 64), colour).save(volume / name, "JPEG")
    return Work(new_id(), name, "image/jpeg", 1, Parameters(**parameters), digest(volume / name), verify=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def children(process: int | None = None) -> list[psutil.Process]:
    return [child for child in psutil.Process(process).children() if "inference_worker.slot" in child.cmdline()]


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come to pass"
        await asyncio.sleep(0.02)


async def test_slots_describe_their_model_and_answer(volume: Path) -> None:
    two = slots(volume, 2)
    ready = await two.start()
    assert ready.model == ModelDescription("detect", ("red", "green", "blue"), 96, 64)
    assert two.ready_count == len(children()) == 2
    outcome = await two.run(work(volume, width=192))
    assert isinstance(outcome, Done)
    [detection] = outcome.detections
    assert (detection.label, detection.box) == ("green", Box(x1=16, y1=0, x2=80, y2=64))
    assert (outcome.width, outcome.height) == (192, 64)
    await two.close()
    assert children() == []


async def test_more_works_than_slots_take_turns(volume: Path) -> None:
    async with running(volume, 2) as two:
        works = [work(volume, width=width) for width in range(50, 70)]
        outcomes = await asyncio.gather(*(two.run(each) for each in works))
    assert [outcome.width for outcome in outcomes if isinstance(outcome, Done)] == list(range(50, 70))


async def test_picture_that_kills_the_process_costs_only_its_own_task(volume: Path) -> None:
    async with running(volume, 2) as two:
        works = [work(volume, CRASHING if number == 3 else GREY) for number in range(10)]
        outcomes = await asyncio.gather(*(two.run(each) for each in works))
        crashed = outcomes.pop(3)
        assert crashed == Retry("worker_crashed", "The process working on the picture was killed by SIGABRT.")
        assert all(isinstance(outcome, Done) for outcome in outcomes)
        await until(lambda: two.ready_count == 2)
        assert isinstance(await two.run(work(volume)), Done)


async def test_hanging_picture_is_killed_at_its_limit_while_others_go_on(volume: Path) -> None:
    async with running(volume, 2, time_limit_seconds=1.5) as two:
        started = time.monotonic()
        hanging = asyncio.create_task(two.run(work(volume, HANGING)))
        for _ in range(5):
            assert isinstance(await two.run(work(volume)), Done)
        assert not hanging.done()
        outcome = await hanging
        assert 1.5 <= time.monotonic() - started < 10
        assert isinstance(outcome, Retry)
        assert outcome.code == "time_limit_exceeded"
        await until(lambda: two.ready_count == 2)
        assert len(children()) == 2


async def test_engine_that_raises_keeps_its_slot(volume: Path) -> None:
    async with running(volume, 1) as one:
        [before] = children()
        outcome = await one.run(work(volume, RAISING))
        assert isinstance(outcome, Failed)
        assert outcome.code == "inference_failed"
        assert isinstance(await one.run(work(volume)), Done)
        assert children() == [before]


async def test_what_libraries_print_does_not_disturb_the_answers(volume: Path) -> None:
    async with running(volume, 1) as one:
        for _ in range(3):
            assert isinstance(await one.run(work(volume, NOISY)), Done)


async def test_a_picture_of_which_a_library_says_much_does_not_fill_the_log(volume: Path) -> None:
    with capture_logs() as log:
        async with running(volume, 1) as one:
            before = len(log)
            for _ in range(3):
                assert isinstance(await one.run(work(volume, NOISY)), Done)
    printed = [event for event in log[before:] if event["event"] == "slot_printed"]
    assert LOGGED_LINES <= len(printed) <= 4 * LOGGED_LINES


async def test_an_only_slot_that_is_killed_while_idle_is_replaced_though_nobody_asks(volume: Path) -> None:
    async with running(volume, 1) as one:
        [child] = children()
        child.kill()
        await until(lambda: one.ready_count == 0)
        await until(lambda: one.ready_count == 1)


async def test_slot_killed_while_idle_costs_no_task(volume: Path) -> None:
    async with running(volume, 2) as two:
        for child in children():
            child.kill()
        await until(lambda: two.ready_count == 0)
        outcomes = await asyncio.gather(*(two.run(work(volume)) for _ in range(4)))
        assert all(isinstance(outcome, Done) for outcome in outcomes)


async def test_slots_leave_signals_to_the_parent(volume: Path) -> None:
    async with running(volume, 1) as one:
        [child] = children()
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        assert isinstance(await one.run(work(volume)), Done)
        assert children() == [child]


async def test_answer_of_a_thousand_boxes_fits(volume: Path) -> None:
    grid = [(24 + i % 40, 32 + i // 40, 1, 1, 0, 0.5, 0) for i in range(1000)]
    write_network(volume / "model.onnx", dense_output(grid, classes=3, columns=1000))
    async with running(volume, 1) as one:
        outcome = await one.run(work(volume, max_detections=1000))
    assert isinstance(outcome, Done)
    assert len(outcome.detections) == 1000


async def test_caller_that_gives_up_leaves_no_answer_to_the_next(volume: Path) -> None:
    async with running(volume, 1) as one:
        given_up = asyncio.create_task(one.run(work(volume, width=70)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        given_up.cancel()
        with suppress(asyncio.CancelledError):
            await given_up
        outcome = await one.run(work(volume, width=80))
        assert isinstance(outcome, Done)
        assert outcome.width == 80


async def test_close_lets_a_slot_finish_its_picture(volume: Path) -> None:
    one = slots(volume, 1)
    await one.start()
    large = work(volume, width=60_000)
    last = asyncio.create_task(one.run(large))
    await asyncio.sleep(0.01)
    await one.close()
    assert isinstance(await last, Done)
    assert children() == []


async def test_close_kills_a_slot_that_hangs(volume: Path) -> None:
    one = slots(volume, 1)
    await one.start()
    last = asyncio.create_task(one.run(work(volume, HANGING)))
    await asyncio.sleep(0.1)
    await one.close()
    outcome = await last
    assert isinstance(outcome, Retry)
    assert outcome.code == "worker_crashed"
    assert children() == []


async def test_unusable_model_stops_the_start_with_the_engines_reason(volume: Path) -> None:
    (volume / "model.onnx").write_bytes(b"this is no model")
    with pytest.raises(StartError, match=r"^/.*model\.onnx cannot be read as a model; export it again"):
        await slots(volume, 2).start()
    assert children() == []


async def test_engine_that_breaks_as_it_loads_stops_the_start_with_its_last_lines(volume: Path) -> None:
    with pytest.raises(StartError, match=r"(?s)ended with exit status 1.*RuntimeError: the device is on fire"):
        await slots(volume, 2, engine="tests.support.engines:StillbornEngine").start()
    assert children() == []


async def test_engine_that_never_loads_stops_the_start(volume: Path) -> None:
    with pytest.raises(StartError, match=r"not ready after 2 s"):
        await slots(volume, 1, engine="tests.support.engines:EndlessEngine", start_limit_seconds=2.0).start()
    assert children() == []


async def test_unknown_engine_stops_the_start(volume: Path) -> None:
    with pytest.raises(StartError, match="no engine named abacus"):
        await slots(volume, 1, engine="abacus").start()


PARENT = """
import asyncio, sys
from pathlib import Path
from uuid import UUID
from custody.wire import Parameters
from inference_worker.outcomes import Work
from inference_worker.slots import Slots

async def main(volume, picture):
    slots = Slots(2, engine={engine!r}, model_path=volume / "model.onnx", volume_root=volume, threads=1,
                  precision="f32", max_pixels=10_000, read_patience_seconds=0.1, time_limit_seconds=600)
    await slots.start()
    hanging = asyncio.create_task(slots.run(Work(UUID(int=1), picture, "image/jpeg", 1, Parameters(), "", False)))
    await asyncio.sleep(0.1)
    print("hanging", flush=True)
    await hanging

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_slots_die_with_their_parent_even_while_they_hang(volume: Path) -> None:
    code = PARENT.format(engine=HAZARD_ENGINE)
    command = [sys.executable, "-c", code, str(volume), work(volume, HANGING).path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | ENVIRONMENT) as parent:
        assert parent.stdout is not None
        assert b"hanging\n" in iter(parent.stdout.readline, b"")
        orphans = children(parent.pid)
        assert len(orphans) == 2
        parent.kill()
        gone, alive = psutil.wait_procs(orphans, timeout=5)
    assert len(gone) == 2
    assert alive == []


async def test_a_slot_is_told_no_login(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes over a decoder finds none in its environment."""
    monkeypatch.setenv("WHARF_DATABASE_URL", "postgresql://worker:hidden@postgres/wharf")
    monkeypatch.setenv("PGPASSWORD", "hidden")
    async with running(volume, 1):
        [slot] = children(os.getpid())
        environment = slot.environ()
    assert environment["PATH"] == os.environ["PATH"]
    assert [name for name, value in environment.items() if "hidden" in value] == []


WATCHED = """
import ctypes, os, subprocess
from inference_worker.child import PR_SET_DUMPABLE, keep_to_itself
from inference_worker.cpus import granted_cpus

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # as it is where a process begins as this user

def status():
    return subprocess.run(["cat", f"/proc/{os.getpid()}/environ"], capture_output=True).returncode

print(status(), granted_cpus())
keep_to_itself()
print(status(), granted_cpus())
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user, as root can on Linux")
def test_a_slot_reads_no_login_of_its_worker_either() -> None:
    ended = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True)
    read, granted, kept, granted_still = ended.stdout.split()
    assert (read, kept) == ("0", "1")
    assert granted_still == granted  # what it reads of itself, it reads as before
