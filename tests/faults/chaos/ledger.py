"""What the service has promised, as its clients wrote it down, to be held against it in the end."""

import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class Deletion(Enum):
    NONE = auto()
    ASKED = auto()
    """The answer was lost, or is still to come: the file may be there or not."""
    DONE = auto()
    DATED = auto()
    """Its time was shortened, and is over before the reckoning."""
    PURGED = auto()
    """Gone with its bytes, unless another file has the same ones."""


@dataclass
class KeptFile:
    """A file whose upload was acknowledged. `key`: of the client that holds it; `fingerprint`: what is to be found in
    it, as the wire has it. A pinned file has a time that is over, and is held all the same."""

    id: str
    sha256: str
    key: str
    fingerprint: dict[str, Any]
    deletion: Deletion = Deletion.NONE


@dataclass
class PromisedJob:
    """A job that was acknowledged. `operation`: what its client calls it in its metadata, which no other job shares but
    its rerun; `fingerprints`: what is to be found in each of its inputs; `endings`: the states it may end in; `ended`:
    the one that somebody was told, which stays; `purge`: what became of its only picture and its results."""

    id: str
    key: str
    operation: str
    fingerprints: list[dict[str, Any]]
    endings: set[str]
    ended: str | None = None
    purge: Deletion = Deletion.NONE


@dataclass(frozen=True)
class Violation:
    """A promise that was broken. `kind`: lost, duplicated, wrong, stuck, left over, leaked or harmed; `what` names the
    evidence."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Ledger:
    """Any thread may write to it. `acknowledged`: the 2xx answers to requests that change something; `refusals`: how
    often each other answer came, a broken connection among them."""

    files: dict[str, KeptFile] = field(default_factory=dict)
    jobs: dict[str, PromisedJob] = field(default_factory=dict)
    requests: int = 0
    acknowledged: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def asked(self) -> None:
        with self.lock:
            self.requests += 1

    def refused(self, how: str) -> None:
        with self.lock:
            self.refusals[how] += 1

    def promised(self, *promises: KeptFile | PromisedJob) -> None:
        with self.lock:
            self.acknowledged += 1
            for promise in promises:
                book: dict[str, Any] = self.files if isinstance(promise, KeptFile) else self.jobs
                book[promise.id] = promise

    def broken(self, kind: str, what: str) -> None:
        with self.lock:
            self.violations.append(Violation(kind, what))
