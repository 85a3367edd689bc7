"""When a batch goes to the device, and how large: the policy alone, without a clock and without a device."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

Latency = Callable[[int], float]
"""Seconds that the device takes for a batch of so many pictures."""

NEWEST_SHARE = 0.2
"""What the newest measurement counts in an average."""


@dataclass(frozen=True)
class BatchPolicy:
    """A free device takes at once what waits, unless a picture that is being decoded already is worth a moment.

    `max_batch`: pictures at most. `max_delay_seconds`: longest that a free device is kept from a picture."""

    max_batch: int
    max_delay_seconds: float

    def size(self, waiting: int, latency: Latency) -> int:
        """How many of those that wait go together: as many as give the most pictures a second, the fewest of these."""
        return max(range(1, min(waiting, self.max_batch) + 1), key=lambda each: each / latency(each))

    def hold_seconds(self, waiting: int, held_seconds: float, next_in_seconds: float | None, latency: Latency) -> float:
        """How much longer the free device waits for the next picture; 0: it takes `size` of those that wait now.

        `held_seconds`: since the device could have had the first of them. `next_in_seconds`: until another is
        expected, 0 where it is overdue, None where none is on its way. Held is only for one that is, and no longer
        than the device is spared by taking it along, counted from the start of the wait."""
        if next_in_seconds is None or self.size(waiting + 1, latency) <= waiting:
            return 0.0
        saved = latency(waiting) + latency(1) - latency(waiting + 1)
        left = min(self.max_delay_seconds, saved) - held_seconds
        return left if left >= next_in_seconds and left > 0 else 0.0


class MeasuredLatency:
    """A `Latency` that learns: an average for each size that was seen, a straight line between two of them. It has to
    have seen one."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def observe(self, size: int, seconds: float) -> None:
        known = self._seconds.get(size, seconds)
        self._seconds[size] = known + NEWEST_SHARE * (seconds - known)

    def __call__(self, size: int) -> float:
        sizes = sorted(self._seconds)
        place = bisect_left(sizes, size)
        if place == len(sizes):
            return self._seconds[sizes[-1]] * size / sizes[-1]
        above = sizes[place]
        if above == size or place == 0:
            return self._seconds[above]
        below = sizes[place - 1]
        share = (size - below) / (above - below)
        return self._seconds[below] + share * (self._seconds[above] - self._seconds[below])
