"""When a volume counts as full: from the high mark on, until it is below the low one again. The broker takes no uploads
meanwhile, and the cleanup makes room."""

from dataclasses import dataclass

import structlog

from custody.volume import Usage

log = structlog.get_logger()

ADVICE = (
    "Let go of files (`wharf files rm`), enlarge the volume, or keep files for a shorter time (`wharf tenant set`)."
)


@dataclass(frozen=True)
class Watermarks:
    """`high`, `low`: shares of the volume in use. `headroom_bytes`: where a share of a large volume would keep more
    than so many bytes free (for the low mark: twice as many), these count."""

    high: float
    low: float
    headroom_bytes: int

    def free_at_high(self, usage: Usage) -> int:
        return min(round((1 - self.high) * usage.total), self.headroom_bytes)

    def free_at_low(self, usage: Usage) -> int:
        return min(round((1 - self.low) * usage.total), 2 * self.headroom_bytes)


class Pressure:
    """One process's view of the volume, from one look to the next; tells the log of each change."""

    def __init__(self, marks: Watermarks) -> None:
        self.marks = marks
        self.is_on = False

    def see(self, usage: Usage) -> bool:
        """Whether there is pressure now."""
        was_on = self.is_on
        self.is_on = usage.free < (self.marks.free_at_low(usage) if was_on else self.marks.free_at_high(usage))
        if self.is_on and not was_on:
            log.warning("volume_nearly_full", used_bytes=usage.used, free_bytes=usage.free, advice=ADVICE)
        elif was_on and not self.is_on:
            log.warning("volume_has_room_again", used_bytes=usage.used, free_bytes=usage.free)
        return self.is_on
