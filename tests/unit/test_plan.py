"""What a load asks for: the arithmetic by hand, units as people write them, and what is refused."""

import json

import pytest
from typer.testing import CliRunner

from standalone.plan import constants, units
from standalone.plan.capacity import Load, broker_ms, gpu_ms, plan, worker_rate
from wharfinger.command import app

DAY = 86400


def load(**changed: object) -> Load:
    given: dict[str, object] = {
        "rate": 10.0,
        "mean": 10.0,
        "size": 2e6,
        "retention": 30 * DAY,
        "results_kept": 90 * DAY,
    }
    return Load(**(given | changed))  # type: ignore[arg-type]


def test_the_arithmetic_of_a_load_as_one_does_it_by_hand() -> None:
    found = plan(load())
    assert found.files == 25_920_000
    assert found.volume_bytes == pytest.approx(51.84e12 / 0.9)
    assert (found.volume_write_bytes, found.volume_read_bytes) == (20e6, 20e6)
    # Two MiB-sized writes, three syncs; an open and two reads; two to remove it.
    assert found.volume_operations == 10 * (2 + 3 + 1 + 2 + 2)
    # 7 ms, 3.008 ms to hash and 2 ms to receive: 0.17 of a broker's CPU at 0.7; one more is spare.
    assert broker_ms(2e6) == pytest.approx(12.0075, abs=0.001)
    assert (found.brokers, found.relays) == (2, 2)
    # 42 + 20 + 2 ms on two CPUs: 31.25/s, 21.875 of it used.
    assert found.worker_rate == pytest.approx(31.25)
    assert (found.workers, found.gpus) == (2, 0)
    assert found.database_commits == 50
    assert found.database_bytes == 10 * 90 * DAY * 6000
    assert found.database_connections == 2 * 20 + 4 * 12 + 20
    assert found.queue_write_bytes == 10 * 600 * 3


@pytest.mark.parametrize(
    ("changed", "name", "value"),
    [
        ({"duplicates": 0.5}, "files", 12_960_000),
        ({"mean": 1.0}, "files", 2_592_000),
        ({"duplicates": 1.0}, "volume_bytes", 0),
        ({"rate": 1000.0}, "workers", 47),  # 1000 / 21.875 = 45.7
        ({"rate": 1000.0}, "brokers", 19),  # 1000 x 12.0075 ms / 0.7 = 17.2
        ({"rate": 1000.0}, "files", 25_920_000),
        ({"spare": 0}, "workers", 1),
        ({"spare": 3}, "relays", 4),
        ({"queue": False}, "relays", 0),
        ({"queue": False}, "queue_cpus", 0),
        ({"cpus": 8}, "worker_rate", 125),
        ({"model_ms": 178.0}, "worker_rate", 10),
        ({"device": "t4"}, "gpus", 1),
        ({"device": "t4", "model_ms": 100.0}, "worker_rate", 10),
        ({"device": "a100", "size": 1e5, "cpus": 4}, "worker_rate", 4000 / 9.2),  # the host is slower than the GPU
        ({"results_kept": DAY}, "database_bytes", 10 * 30 * DAY * 6000),  # a file's row stays with the file
    ],
)
def test_what_a_change_of_the_load_changes(changed: dict[str, object], name: str, value: float) -> None:
    assert getattr(plan(load(**changed)), name) == pytest.approx(value)


def test_gpus_are_computed_from_one_by_their_arithmetic() -> None:
    assert gpu_ms("t4") == 3.0
    assert gpu_ms("a100") == pytest.approx(3.0 * 65 / 312)
    assert worker_rate(load(device="l4", cpus=64)) == pytest.approx(1000 / gpu_ms("l4"))


def test_every_constant_says_where_it_is_from() -> None:
    assert len(constants.ALL) > 20
    assert all(each.where and each.value > 0 for each in constants.ALL.values())


@pytest.mark.parametrize(
    ("text", "value"),
    [("500/s", 500), ("30/min", 0.5), ("7200/h", 2), (" 86400 / d ", 1), ("0.5/s", 0.5)],
)
def test_a_rate_is_read(text: str, value: float) -> None:
    assert units.rate(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"), [("2MB", 2e6), ("1.5GiB", 1.5 * 1024**3), ("200 kB", 2e5), ("12B", 12), ("1TiB", 1024**4)]
)
def test_a_size_is_read(text: str, value: float) -> None:
    assert units.size(text) == value


@pytest.mark.parametrize(("text", "value"), [("30d", 30 * DAY), ("12h", 43200), ("2w", 14 * DAY), ("90min", 5400)])
def test_a_duration_is_read(text: str, value: float) -> None:
    assert units.duration(text) == value


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (2e6, "2 MB"), (51.84e12, "51.8 TB"), (3e18, "3,000 PB")])
def test_a_size_is_shown_in_its_largest_unit(count: float, text: str) -> None:
    assert units.shown_size(count) == text


RIGHT = {"--rate": "500/s", "--size": "2MB", "--retention": "30d"}


def told(**changed: str) -> tuple[int, str]:
    given = RIGHT | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    ended = CliRunner().invoke(app, ["plan", *(word for pair in given.items() for word in pair)])
    return ended.exit_code, " ".join((ended.stdout + ended.stderr).replace("│", " ").split())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("rate", "500", "'500' is not understood: a number and a unit are needed, as in 500/s"),
        ("rate", "500/fortnight", "unknown unit, fortnight: use one of s, min, h, d, w"),
        ("rate", "0/s", "more than 0"),
        ("rate", "-5/s", "not understood"),
        ("size", "2mb", "unknown unit, mb: use one of B, kB, MB"),
        ("size", "lots", "as in 2MB"),
        ("size", "9" * 400 + "MB", "no amount to plan for"),
        ("retention", "30", "as in 30d"),
        ("retention", "30 days", "unknown unit, days"),
        ("duplicates", "1.5", "--duplicates"),
        ("device", "abacus", "use one of cpu, t4, l4, a10, a100; for another, say --model-ms"),
        ("cpus", "0", "greater than or equal to 1"),
    ],
)
def test_a_load_that_is_none_is_refused_with_what_is_expected(option: str, value: str, said: str) -> None:
    status, text = told(**{option: value})
    assert status == 2
    assert said in text


def test_the_command_tells_the_plan_the_values_and_the_constants() -> None:
    status, text = told()
    assert status == 0
    for part in ("2.88 PB", "1,296,000,000 files", "max_connections 532", "brokers 10", "replicas: 24", "assumed"):
        assert part in text, part


def test_a_gpus_figures_are_said_to_be_computed() -> None:
    _, text = told(device="l4")
    assert "No GPU has been measured by us" in text
    assert "gpus: 1" in text


def test_the_document_has_load_plan_values_and_constants() -> None:
    ended = CliRunner().invoke(app, ["plan", "--json", *(word for pair in RIGHT.items() for word in pair)])
    document = json.loads(ended.stdout)
    assert document["load"]["results_kept"] == 90 * DAY
    assert document["plan"]["workers"] == document["values"]["poolDefaults"]["replicas"] == 24
    assert document["constants"]["hash_bytes"]["source"] == "measured"
