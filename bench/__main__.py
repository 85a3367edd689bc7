"""`python -m bench [SCENARIO...]`: each scenario in turn, a table on standard output and all figures as JSON."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench import machine
from bench.environment import UnavailableError, python_of
from bench.report import as_json, table
from bench.rounds import Result, Window, play
from bench.scenario import MissingError, Scenario, found
from tests.support.rabbitmq import available

ROUNDS = 5
"""Fewer show that it runs, and no more."""

PUBLISHED = machine.ROOT / "docs" / "benchmarks"


def main() -> None:
    scenarios = found()
    arguments = _arguments(scenarios)
    if not available():
        sys.exit(
            "python -m bench: no RabbitMQ on this machine: apt-get install rabbitmq-server, or run make bench as root"
        )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    here = machine.describe()
    documents: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    _say(machine.line(here))
    for name in arguments.scenarios or scenarios:
        scenario = scenarios[name]
        size = arguments.size or scenario.size
        _say(f"\n{name} ({scenario.letter}): {scenario.title}; {arguments.rounds} rounds of size {size:,}")
        try:
            result = _play(scenario, arguments.rounds, size)
        except MissingError as error:
            _say(f"{name} is left out. {error}")
            left_out[name] = str(error)
            continue
        sys.stdout.write(f"{table(result, scenario.things)}\n")
        sys.stdout.flush()
        told = {"title": scenario.title, "things": scenario.things, "size": size, **as_json(result)}
        documents[name] = told
        if arguments.json:
            run = {"machine": here, "rounds": arguments.rounds, "scenarios": documents, "left_out": left_out}
            arguments.json.write_text(json.dumps(run, indent=2) + "\n")
        if arguments.publish:
            _publish(name, {"machine": here, "rounds": arguments.rounds, **told})
    if left_out:
        sys.exit(1)


def _play(scenario: Scenario, rounds: int, size: int) -> Result:
    began = time.monotonic()

    def told(number: int, name: str, window: Window) -> None:
        seconds = time.monotonic() - began
        _say(f"  {seconds:5.0f} s  round {number}: {name} {window.per_second:.1f} {scenario.things}/s")

    with tempfile.TemporaryDirectory(prefix="wharf-bench-") as folder, scenario.open(Path(folder), size) as contest:
        return play(contest, rounds, told)


def _publish(name: str, document: Mapping[str, Any]) -> None:
    """The figures, and a picture of them."""
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    file = PUBLISHED / f"{name}.json"
    file.write_text(json.dumps(document, indent=2) + "\n")
    try:
        subprocess.run([python_of("charts"), "-m", "bench.charts", file], check=True, cwd=machine.ROOT)
    except UnavailableError as error:
        _say(f"There is no picture of it. {error}")


def _arguments(scenarios: Mapping[str, Scenario]) -> argparse.Namespace:
    names = ", ".join(f"{name} ({scenario.letter})" for name, scenario in scenarios.items())
    letters = {scenario.letter: name for name, scenario in scenarios.items()}
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures what bench/README.md tells.")
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        type=lambda name: letters.get(name, name),
        help=f"all of them unless named: {names}",
    )
    parser.add_argument("--rounds", type=_count, default=ROUNDS, help=f"{ROUNDS} unless told; fewer prove nothing")
    parser.add_argument(
        "--size", type=_count, help="of a window, in place of the scenario's own; README.md tells what it counts"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    parser.add_argument(
        "--publish", action="store_true", help="write the figures and a picture of each table to docs/benchmarks"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.scenarios if name not in scenarios]
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; choose of {names}")
    return arguments


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    # Once: what has been started is being stopped, and nothing is to cut that off.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _say(words: str) -> None:
    """Progress: beside the tables, not among them."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
