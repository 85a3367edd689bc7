"""How fast a verification reads, and how it is asked to end."""

import threading
import time


class Pace:
    """`bytes_per_second` for all threads together."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._turn = threading.Lock()
        self._next = 0.0
        self._stopping = threading.Event()

    def take(self, size: int) -> bool:
        """Waits until so many bytes may be read. False: no more are to be read."""
        with self._turn:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + size / self.bytes_per_second
        return not self._stopping.wait(max(0.0, mine - now))

    def stop(self) -> None:
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()
