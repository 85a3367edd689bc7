"""Photos of 12 megapixels by HTTP: a slot decodes them smaller, and everybody else whole."""

from contextlib import AbstractContextManager
from pathlib import Path

from bench.pictures import model_and_photo, phone_photo
from bench.rounds import Contest
from bench.scenario import Scenario
from bench.scenarios.end_to_end import contest

CONNECTIONS = (8,)
LEAST_OVERLAP = 0.9


def _open(folder: Path, size: int) -> AbstractContextManager[Contest]:
    _, photo = model_and_photo()
    return contest(folder, size, phone_photo(photo), CONNECTIONS, whole=True, least_overlap=LEAST_OVERLAP)


SCENARIO = Scenario("h", "12 MP photos by HTTP; the peers decode them whole", "images", size=100, open=_open)
