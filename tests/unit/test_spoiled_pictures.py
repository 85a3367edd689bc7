"""Hundreds of spoiled pictures of every accepted kind: the broker's probe and the worker's decoder tell what is wrong
with them in the documented words, in bounded time and memory."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.mutations import KINDS

SEED = 4
COUNT = 300


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoiled_picture_is_refused_or_read_in_bounded_time_and_memory(kind: str) -> None:
    command = [sys.executable, "-m", "tests.support.mutations", kind, str(SEED), str(COUNT)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert sum(told["probed"].values()) == COUNT
    assert set(told["probed"]) <= {"ok", "unsupported_media_type", "damaged_image", "too_many_pixels", "empty_file"}
    assert set(told["decoded"]) <= {"ok", "undecodable_image", "too_many_pixels"}
    assert len(told["probed"]) >= 3  # the corpus is neither all good nor all the same wreck
    assert told["decoded"]["undecodable_image"] > COUNT // 10
    assert told["slowest"] < 20
    assert told["peak"] < 1 << 30
