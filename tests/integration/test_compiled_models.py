"""What a slot compiled, kept for the next one: on the real OpenVINO, with entries that are hurt in every way."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest

from custody.wire import Detection, Parameters
from inference_worker.decode import decode
from inference_worker.engines.compiled import CompiledCache
from inference_worker.engines.openvino import OpenVINOEngine
from inference_worker.slots import Slots
from tests.contract.test_engine_contract import dense, end_to_end, ir, picture
from tests.support.shared import BUS, YOLO11N, needs_shared

ROOM = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "compiled"


def found_by(model: Path, folder: Path, precision: str = "f32") -> list[Detection]:
    engine = OpenVINOEngine(model, 1, precision, CompiledCache(folder, ROOM))
    return engine.infer(picture(), Parameters())


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each network that is compiled and not taken from the cache."""
    seen: list[str] = []

    class Core(ov.Core):
        def compile_model(self, *arguments: object) -> ov.CompiledModel:
            seen.append("compiled")
            return super().compile_model(*arguments)

    monkeypatch.setattr(ov, "Core", Core)
    return seen


def test_next_start_takes_what_the_first_one_compiled_and_finds_the_same(
    tmp_path: Path, folder: Path, compiles: list[str]
) -> None:
    model = dense(tmp_path)
    first = found_by(model, folder)
    assert found_by(model, folder) == first == OpenVINOEngine(model, 1, "f32").infer(picture(), Parameters())
    assert len(compiles) == 2  # the first start, and the engine that keeps nothing


@needs_shared
@pytest.mark.parametrize("precision", ["f32", "auto"])
def test_real_network_answers_the_same_whether_compiled_or_taken(
    precision: str, folder: Path, compiles: list[str]
) -> None:
    photo = decode(BUS.read_bytes(), "image/jpeg", 1, fit=(640, 640))
    answers = [
        OpenVINOEngine(YOLO11N, 1, precision, CompiledCache(folder, 64 << 20)).infer(photo, Parameters())
        for _ in range(2)
    ]
    assert answers[0] == answers[1] != []
    assert len(compiles) == 1


def test_folder_and_entries_are_their_owners_alone(tmp_path: Path, folder: Path) -> None:
    found_by(dense(tmp_path), folder)
    [entry] = entries(folder)
    assert (folder.stat().st_mode & 0o777, entry.stat().st_mode & 0o777) == (0o700, 0o600)


def test_another_model_another_precision_and_other_weights_are_compiled_themselves(
    tmp_path: Path, folder: Path, compiles: list[str]
) -> None:
    model = ir(tmp_path)
    found_by(model, folder)
    found_by(model, folder, "auto")
    weights = model.with_suffix(".bin")
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    weights.write_bytes(changed)
    found_by(model, folder)
    (tmp_path / "other").mkdir()
    found_by(end_to_end(tmp_path / "other"), folder)
    assert len(compiles) == len(entries(folder)) == 4


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0x40 for byte in data[middle : middle + 64]) + data[middle + 64 :]


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda data: data[:20], lambda data: data[:-1], flipped, lambda data: bytes(len(data))]
)
def test_damaged_entry_ends_in_a_new_one(
    damage: Callable[[bytes], bytes], tmp_path: Path, folder: Path, compiles: list[str]
) -> None:
    model = dense(tmp_path)
    whole = found_by(model, folder)
    [entry] = entries(folder)
    right = entry.read_bytes()
    entry.write_bytes(damage(right))
    assert found_by(model, folder) == whole
    assert len(compiles) == 2
    assert found_by(model, folder) == whole
    assert len(compiles) == 2


def test_entry_that_is_whole_but_that_openvino_refuses_ends_in_a_new_one(
    tmp_path: Path, folder: Path, compiles: list[str]
) -> None:
    model = dense(tmp_path)
    whole = found_by(model, folder)
    [entry] = entries(folder)
    CompiledCache(folder, ROOM).keep(entry.stem, b"no compiled model at all")
    assert found_by(model, folder) == whole
    assert len(compiles) == 2


@pytest.mark.parametrize("hurt", ["mode", "link", "file"])
def test_folder_that_others_may_enter_is_not_believed(
    hurt: str, tmp_path: Path, folder: Path, compiles: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    model = dense(tmp_path)
    whole = found_by(model, folder)
    if hurt == "mode":
        folder.chmod(0o755)
    else:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere") if hurt == "link" else folder.write_text("")
    assert found_by(model, folder) == whole
    assert len(compiles) == 2
    assert str(folder) in capfd.readouterr().err


def test_what_was_used_longest_ago_goes_first_and_what_is_too_large_is_not_kept(folder: Path) -> None:
    cache = CompiledCache(folder, 3 * 132)
    for number, key in enumerate("abc"):
        cache.keep(key, bytes(100))
        os.utime(folder / f"{key}.compiled", (number, number))
    assert cache.find("a") == bytes(100)  # used now
    cache.keep("d", bytes(100))
    assert [entry.stem for entry in entries(folder)] == ["a", "c", "d"]
    cache.keep("e", bytes(400))
    assert [entry.stem for entry in entries(folder)] == ["a", "c", "d"]


def _keep_without_end(folder: Path) -> None:
    cache = CompiledCache(folder, 64 << 20)
    while True:
        cache.keep("a", bytes(16 << 20))


def test_writer_that_is_killed_leaves_no_half_entry_and_the_next_one_removes_what_it_left(folder: Path) -> None:
    cache = CompiledCache(folder, 64 << 20)
    cache.keep("a", bytes(100))
    left = False
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=_keep_without_end, args=(folder,))
        process.start()
        give_up = time.monotonic() + 10
        while not list(folder.glob("*.new")):
            assert time.monotonic() < give_up, "it never wrote"
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        left = left or bool(list(folder.glob("*.new")))
        assert cache.find("a") in (bytes(100), bytes(16 << 20))
        if left:
            break
    assert left, "no kill came in the middle"
    cache.keep("b", bytes(100))
    assert [entry.name for entry in entries(folder)] == ["a.compiled", "b.compiled"]


def test_full_disk_keeps_nothing_and_stops_nothing(tmp_path: Path, folder: Path) -> None:
    """A limit of the file's size stands in for the disk."""
    model = dense(tmp_path)
    script = (
        "import resource, signal, sys; from pathlib import Path;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from inference_worker.engines.compiled import CompiledCache;"
        "from inference_worker.engines.openvino import OpenVINOEngine;"
        "OpenVINOEngine(Path(sys.argv[1]), 1, 'f32', CompiledCache(Path(sys.argv[2]), 1 << 20)).warm_up(); print('up')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(model), str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "up\n"
    assert "not kept" in done.stderr
    assert entries(folder) == []


async def test_several_slots_that_start_at_once_share_one_entry(tmp_path: Path, folder: Path) -> None:
    model = dense(tmp_path)
    for _ in range(2):
        slots = Slots(
            3,
            engine="openvino",
            model_path=model,
            volume_root=tmp_path,
            threads=1,
            precision="f32",
            max_pixels=10_000,
            read_patience_seconds=0,
            time_limit_seconds=30,
            compiled=folder,
            compiled_bytes=ROOM,
        )
        await slots.start()
        assert slots.ready_count == 3
        await slots.close()
        assert [entry.suffix for entry in entries(folder)] == [".compiled"]
