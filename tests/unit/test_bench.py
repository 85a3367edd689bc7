"""The bench's arithmetic: who runs when, what is made of the windows, and that nothing is left out of a report."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as command
from bench import scenarios
from bench.cpu import below_seconds
from bench.pictures import distinct, model_and_photo, tiny
from bench.report import as_json, table
from bench.rounds import Contender, Contest, Result, Window, play
from bench.scenario import found
from inference_worker.decode import decode


def contender(name: str, rates: Iterator[float], ran: list[str]) -> Contender:
    def measure() -> Window:
        ran.append(name)
        rate = next(rates)
        return Window(rate, {"CPU ms": 1000 / rate})

    return Contender(name, measure)


def played(ran: list[str]) -> Result:
    """Two rounds on a machine that becomes half as fast after the first."""
    limit = contender("limit", iter([100.0, 100.0, 60.0, 50.0, 50.0]), ran)
    contenders = [contender("A", iter([80.0, 44.0]), ran), contender("B", iter([40.0, 20.0]), ran)]
    return play(Contest(contenders, limit), 2, lambda number, name, window: None)


def test_contenders_run_in_turn_with_the_limit_before_and_after_each() -> None:
    ran: list[str] = []
    played(ran)
    assert ran == ["limit", "A", "limit", "B", "limit", "A", "limit", "B", "limit"]


def test_a_ratio_is_to_the_mean_of_the_limits_around_the_window() -> None:
    first, second = played([]).contenders
    assert first.ratio is not None
    assert second.ratio is not None
    assert first.ratio.values == [0.8, 44 / 55]
    assert second.ratio.values == [0.5, 0.4]


def test_each_window_is_told_with_its_round() -> None:
    told: list[tuple[int, str, float]] = []
    contest = Contest([contender("A", iter([2.0, 3.0]), [])], contender("limit", iter([4.0, 5.0, 6.0]), []))
    play(contest, 2, lambda number, name, window: told.append((number, name, window.per_second)))
    assert told == [(1, "limit", 4), (1, "A", 2), (1, "limit", 5), (2, "A", 3), (2, "limit", 6)]


def test_the_json_has_the_median_the_spread_and_every_round() -> None:
    document = json.loads(json.dumps(as_json(played([]))))
    assert document["limit"]["per_second"] == {
        "median": 60, "least": 50, "most": 100, "rounds": [100, 100, 60, 50, 50]
    }  # fmt: skip
    assert "ratio" not in document["limit"]
    first, _ = document["contenders"]
    assert first["name"] == "A"
    assert first["per_second"]["median"] == 62
    assert first["ratio"] == {"median": 0.8, "least": 0.8, "most": 0.8, "rounds": [0.8, 0.8]}
    assert first["figures"]["CPU ms"]["least"] == 12.5


def test_the_table_has_a_row_for_each_and_leaves_empty_what_one_does_not_show() -> None:
    limit = Contender("limit", lambda: Window(1234.5, {"CPU ms": 0.123}))
    other = Contender("other", lambda: Window(617.25, {"CPU ms": 4.567, "p50 ms": 89.01}))
    shown = table(play(Contest([other], limit), 1, lambda *_: None), "images").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown]
    assert cells[0] == ["", "images/s", "of the limit", "CPU ms", "p50 ms"]
    assert cells[2] == ["limit", "1,234 (1,234 to 1,234)", "limit", "0.12", ""]
    assert cells[3] == ["other", "617 (617 to 617)", "0.50 (0.50 to 0.50)", "4.57", "89.0"]
    assert len({len(line) for line in shown}) == 1


def test_every_scenario_module_is_found() -> None:
    [folder] = scenarios.__path__
    modules = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    assert set(found()) == modules
    assert {"cleanup", "end_to_end", "overhead", "release"} <= modules
    letters = [scenario.letter for scenario in found().values()]
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("arguments", [["nonsense"], ["release", "--rounds", "0"], ["release", "--size", "-1"]])
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert arguments[-1] in capsys.readouterr().err


@pytest.mark.parametrize("jpeg", [tiny(), model_and_photo()[1]], ids=["tiny", "photo"])
def test_distinct_pictures_are_other_bytes_and_the_same_pixels(jpeg: bytes) -> None:
    pictures = [jpeg, *islice(distinct(jpeg), 3), *islice(distinct(jpeg), 3)]
    assert len(set(pictures)) == len(pictures)
    first, *others = [decode(picture, "image/jpeg", 1).pixels for picture in pictures]
    assert all(np.array_equal(first, other) for other in others)


def test_what_a_dead_child_has_used_still_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    before = below_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert below_seconds(os.getpid()) - before >= 0.25
