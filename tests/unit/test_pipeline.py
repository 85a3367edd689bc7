import hashlib
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from PIL import Image

from custody.wire import Box, Detection, Parameters
from inference_worker.decode import Picture
from inference_worker.engines import ModelDescription
from inference_worker.outcomes import Corrupt, Done, Failed, Outcome, Retry, Unprocessable, Work
from inference_worker.pipeline import Pipeline

DETECTION = Detection(class_id=0, label="page", confidence=0.5, box=Box(x1=1, y1=2, x2=3, y2=4))


class ScriptedEngine:
    """Keeps what it is given, and answers or raises as told."""

    description = ModelDescription("detect", ("page",), 64, 64)

    def __init__(self, answer: Callable[[], list[Detection]] = lambda: [DETECTION]) -> None:
        self.answer = answer
        self.seen: list[tuple[Picture, Parameters]] = []

    def warm_up(self) -> None:
        pass

    def infer(self, picture: Picture, parameters: Parameters) -> list[Detection]:
        self.seen.append((picture, parameters))
        return self.answer()


def run(
    root: Path,
    engine: ScriptedEngine,
    path: str = "a.jpg",
    *,
    orientation: int = 1,
    exact: bool = False,
    patience: float = 0.0,
    uploaded: bytes | None = None,
    verify: bool = False,
) -> Outcome:
    """`uploaded`: what was taken into custody, where something else lies there now."""
    if uploaded is None:
        uploaded = (root / path).read_bytes() if (root / path).is_file() else b""
    sha256 = hashlib.sha256(uploaded).hexdigest()
    work = Work(UUID(int=1), path, "image/jpeg", orientation, Parameters(conf=0.4), sha256, verify)
    pipeline = Pipeline(root, engine, max_pixels=10_000, exact=exact, read_patience_seconds=patience)
    return pipeline.run(work)


def jpeg(width: int = 80, height: int = 40) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(target, "JPEG")
    return target.getvalue()


def test_picture_is_read_decoded_and_inferred(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    engine = ScriptedEngine()
    outcome = run(tmp_path, engine)
    assert isinstance(outcome, Done)
    assert outcome.detections == [DETECTION]
    assert (outcome.width, outcome.height) == (80, 40)
    [(picture, parameters)] = engine.seen
    assert picture.pixels.shape == (40, 80, 3)
    assert parameters == Parameters(conf=0.4)


def test_size_is_of_the_upright_picture_and_pixels_are_scaled_to_the_engine(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(120, 64))
    engine = ScriptedEngine()
    engine.description = ModelDescription("detect", ("page",), 30, 30)
    outcome = run(tmp_path, engine, orientation=6)
    assert isinstance(outcome, Done)
    assert (outcome.width, outcome.height) == (64, 120)
    assert engine.seen[0][0].pixels.shape == (60, 32, 3)


def test_exact_pipeline_decodes_the_whole_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(120, 64))
    engine = ScriptedEngine()
    engine.description = ModelDescription("detect", ("page",), 16, 16)
    assert isinstance(run(tmp_path, engine, exact=True), Done)
    assert engine.seen[0][0].pixels.shape == (64, 120, 3)


def test_timings_are_milliseconds_of_each_step(tmp_path: Path) -> None:
    def slowly() -> list[Detection]:
        time.sleep(0.05)
        return []

    (tmp_path / "a.jpg").write_bytes(jpeg())
    started = time.perf_counter()
    outcome = run(tmp_path, ScriptedEngine(slowly))
    elapsed_ms = (time.perf_counter() - started) * 1000
    assert isinstance(outcome, Done)
    assert outcome.infer_ms >= 50
    assert min(outcome.read_ms, outcome.decode_ms) > 0
    assert outcome.read_ms + outcome.decode_ms + outcome.infer_ms <= elapsed_ms


def test_missing_file_may_come_back(tmp_path: Path) -> None:
    outcome = run(tmp_path, ScriptedEngine(), "gone.jpg")
    assert isinstance(outcome, Retry)
    assert outcome.code == "file_unreadable"
    assert "ENOENT" in outcome.detail
    assert "ENOENT" in outcome.detail


def test_file_that_appears_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.2, lambda: (tmp_path / "a.jpg").write_bytes(jpeg()))
    late.start()
    outcome = run(tmp_path, ScriptedEngine(), patience=20.0)
    late.join()
    assert isinstance(outcome, Done)
    assert outcome.read_ms >= 100


def test_missing_file_is_asked_for_again_for_as_long_as_told(tmp_path: Path) -> None:
    started = time.monotonic()
    assert isinstance(run(tmp_path, ScriptedEngine(), patience=0.4), Retry)
    assert 0.15 < time.monotonic() - started < 5


def test_what_no_cache_explains_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    started = time.monotonic()
    outcome = run(tmp_path, ScriptedEngine(), patience=20.0)
    assert isinstance(outcome, Retry)
    assert outcome.code == "file_unreadable"
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"text", "undecodable_image"), (jpeg()[:-100], "undecodable_image"), (jpeg(200, 200), "too_many_pixels")],
)
def test_picture_that_cannot_be_decoded_can_never_work(tmp_path: Path, data: bytes, code: str) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    outcome = run(tmp_path, ScriptedEngine())
    assert isinstance(outcome, Unprocessable)
    assert outcome.code == code


def test_engine_that_raises_fails_the_picture(tmp_path: Path) -> None:
    def refuse() -> list[Detection]:
        raise ArithmeticError("seven boxes too many")

    (tmp_path / "a.jpg").write_bytes(jpeg())
    outcome = run(tmp_path, ScriptedEngine(refuse))
    assert outcome == Failed("inference_failed", "The engine raised ArithmeticError: seven boxes too many")


def test_lack_of_memory_is_no_fault_of_the_picture(tmp_path: Path) -> None:
    def exhaust() -> list[Detection]:
        raise MemoryError

    (tmp_path / "a.jpg").write_bytes(jpeg())
    outcome = run(tmp_path, ScriptedEngine(exhaust))
    assert isinstance(outcome, Retry)
    assert outcome.code == "worker_crashed"


def flipped(data: bytes, position: int) -> bytes:
    """One bit is another."""
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_a_flipped_bit_is_found_before_anything_is_decoded(tmp_path: Path) -> None:
    uploaded = jpeg()
    (tmp_path / "a.jpg").write_bytes(flipped(uploaded, uploaded.index(b"JFIF") + 9))  # its density: no pixel differs
    engine = ScriptedEngine()
    assert isinstance(run(tmp_path, engine, uploaded=uploaded), Done)
    engine.seen.clear()
    assert isinstance(run(tmp_path, engine, uploaded=uploaded, verify=True), Corrupt)
    assert engine.seen == []


def test_bytes_that_are_as_uploaded_pass(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    assert isinstance(run(tmp_path, ScriptedEngine(), verify=True), Done)


def test_what_cannot_be_decoded_is_compared_also_where_nobody_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg()[:-100])
    assert isinstance(run(tmp_path, ScriptedEngine(), uploaded=jpeg()), Corrupt)
    assert isinstance(run(tmp_path, ScriptedEngine()), Unprocessable)


def test_a_part_of_a_file_that_is_seen_for_a_moment_is_no_damage(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    whole, reads = Path.read_bytes, []

    def first_in_part(path: Path) -> bytes:
        reads.append(path)
        return whole(path)[: None if len(reads) > 1 else 100]

    uploaded = jpeg()
    monkeypatch.setattr(Path, "read_bytes", first_in_part)
    assert isinstance(run(tmp_path, ScriptedEngine(), uploaded=uploaded, verify=True), Done)
    assert len(reads) == 2
    reads.clear()
    assert isinstance(run(tmp_path, ScriptedEngine(), uploaded=uploaded), Retry)
