"""The bench's arithmetic: who runs when, what is made of the windows, and that nothing is left out of a report."""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from bench import __main__ as command
from bench import scenarios
from bench.cpu import below_seconds
from bench.environment import PINS
from bench.load import closed_loop
from bench.machine import ROOT
from bench.peer import PEERS, alike
from bench.pictures import NUMBER, distinct, model_and_photo, tiny
from bench.report import as_json, table
from bench.request import open_inference, raw
from bench.rounds import Contender, Contest, GivenUpError, Result, Window, play
from bench.scenario import MissingError, found, program
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


def test_a_figure_that_is_added_is_told_above_the_mean_of_the_limits_around() -> None:
    limits = iter([Window(1, {"p50 ms": 10.0}), Window(1, {"p50 ms": 14.0})])
    measured = Window(1, {"p50 ms": 20.0})
    contest = Contest(
        [Contender("A", lambda: measured), Contender("B", lambda: measured)],
        Contender("limit", lambda: next(limits, Window(1, {"p50 ms": 30.0}))),
        added=["p50 ms", "what only some show"],
    )
    first, second = play(contest, 1, lambda *_: None).contenders
    assert first.figures["added p50 ms"].values == [8.0]
    assert second.figures["added p50 ms"].values == [-2.0]
    assert first.figures["p50 ms"].values == [20.0]
    assert "added what only some show" not in first.figures


def test_who_is_left_out_is_named_in_the_table_and_in_the_json() -> None:
    contest = Contest([], Contender("limit", lambda: Window(1)), left_out={"Peer": "pip found no such version."})
    result = play(contest, 1, lambda *_: None)
    assert "Left out: Peer. pip found no such version." in table(result, "images")
    assert as_json(result)["left_out"] == {"Peer": "pip found no such version."}


def test_a_contender_that_gives_up_is_left_out_and_the_others_go_on() -> None:
    ran: list[str] = []
    steady = contender("A", iter([1.0, 1.0, 1.0]), ran)
    windows = iter([Window(1)])

    def measure() -> Window:
        for window in windows:
            return window
        raise GivenUpError("HTTP 500")

    contest = Contest([Contender("B", measure), steady], contender("limit", iter([1.0] * 7), ran))
    result = play(contest, 3, lambda *_: None)
    assert [standing.name for standing in result.contenders] == ["A"]
    assert result.left_out == {"B": "HTTP 500"}
    assert ran.count("A") == 3


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
    assert {"accepted", "cleanup", "end_to_end", "latency", "overhead", "release", "stored"} <= modules
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


def test_another_number_in_a_request_is_another_picture_of_the_same_pixels() -> None:
    template = open_inference("model", tiny()).body
    assert template.count(NUMBER) == 1
    bodies = [json.loads(template.replace(NUMBER, number)) for number in (b"000000000001", b"000000000002")]
    pictures = [tiny(), *(b64decode(body["inputs"][0]["data"][0], validate=True) for body in bodies)]
    pictures += [raw("/", tiny()).body.replace(NUMBER, number) for number in (b"000000000001", b"000000000002")]
    assert len(set(pictures)) == len(pictures)
    first, *others = [decode(picture, "image/jpeg", 1).pixels for picture in pictures]
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk on this machine: apt-get install wrk")
@pytest.mark.parametrize(("requests", "connections"), [(50, 8), (20, 1), (5, 8)])
def test_a_closed_loop_sends_so_many_requests_and_each_once(requests: int, connections: int) -> None:
    with listening() as (url, bodies):
        load = closed_loop(url, replace(raw("/", tiny()), words="fine"), requests, connections)
    assert len(set(bodies)) == len(bodies) == requests
    assert 0 < load.p50 <= load.p99 <= load.seconds + 0.001


@pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk on this machine: apt-get install wrk")
def test_an_answer_that_is_not_what_it_should_be_ends_the_loop() -> None:
    with listening() as (url, _), pytest.raises(RuntimeError, match="all is fine"):
        closed_loop(url, replace(raw("/", tiny()), words="not in it"), 10, 2)


@contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """An HTTP server that answers everything alike, and what it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "11")
            self.end_headers()
            self.wfile.write(b"all is fine")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join()


def test_boxes_are_alike_where_each_has_one_of_its_label_that_overlaps_enough() -> None:
    def found(label: str, x2: float) -> dict[str, Any]:
        return {"label": label, "box": {"x1": 0, "y1": 0, "x2": x2, "y2": 10}}

    expected = [found("bus", 100), found("person", 10)]
    assert alike([found("person", 10), found("bus", 99.5)], expected)
    assert not alike([found("person", 10), found("bus", 90)], expected)
    assert alike([found("person", 10), found("bus", 91)], expected, least_overlap=0.9)
    assert not alike([found("person", 10), found("car", 100)], expected)
    assert not alike([found("person", 10)], expected)


def test_every_peer_has_a_module_and_pins_the_engine_that_we_pin() -> None:
    ours = pinned(ROOT / "constraints.txt")
    for peer in PEERS:
        assert (ROOT / "bench" / "peers" / f"{peer.module}.py").is_file()
        theirs = pinned(PINS / f"{peer.pins}.txt")
        assert {name: theirs[name] for name in ENGINE} == {name: ours[name] for name in ENGINE}


ENGINE = ("numpy", "opencv-python-headless", "openvino", "simplejpeg")


def pinned(file: Path) -> dict[str, str]:
    """Version by name, of a file that says nothing else."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.lower().replace("_", "-").split("==") for line in lines)


def test_a_program_that_is_missing_is_told_with_what_to_install() -> None:
    with pytest.raises(MissingError, match="apt-get install its-package"):
        program("no-such-program", "its-package")


def test_what_a_dead_child_has_used_still_counts() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    before = below_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert below_seconds(os.getpid()) - before >= 0.25
