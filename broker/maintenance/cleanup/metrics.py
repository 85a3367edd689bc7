"""What a process that cleans up counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from custody.cleanup import Run
from custody.installation import SweepOff
from custody.volume import Usage


class CleanupMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs = Counter("wharf_cleanup_runs", "Cleanups by how they ended", ["stopped"], registry=self.registry)
        self.removed = Counter(
            "wharf_cleanup_removed",
            "What cleanups took away: rows of `files` and `jobs`, `bytes` of files, abandoned uploads (`staging`)",
            ["kind"],
            registry=self.registry,
        )
        self.freed = Counter("wharf_cleanup_freed_bytes", "Bytes freed on the volume", registry=self.registry)
        self.errors = Counter("wharf_cleanup_errors", "What cleanups could not take away", registry=self.registry)
        self.orphans = Gauge(
            "wharf_cleanup_orphans", "Files that no row knows, of the last sweep", registry=self.registry
        )
        self.missing = Gauge(
            "wharf_cleanup_missing", "Files promised and not found, of the last sweep", registry=self.registry
        )
        self.ended = Gauge(
            "wharf_cleanup_ended_timestamp_seconds", "When the last cleanup that was done ended, since 1970",
            registry=self.registry,
        )  # fmt: skip
        self.sweep_off = Gauge(
            "wharf_cleanup_sweep_off", "1 where a restore is suspected, and orphans are only reported",
            registry=self.registry,
        )  # fmt: skip

        self.volume = Gauge("wharf_volume_bytes", "Of the volume: `used`, `free`", ["kind"], registry=self.registry)
        self.pressed = Gauge(
            "wharf_volume_pressed", "1 where the volume is nearly full, and cleanups make room", registry=self.registry
        )

    def see(self, usage: Usage, *, pressed: bool) -> None:
        self.volume.labels("used").set(usage.used)
        self.volume.labels("free").set(usage.free)
        self.pressed.set(pressed)

    def count(self, run: Run, sweep_off: SweepOff | None) -> None:
        self.runs.labels(run.stopped).inc()
        removed = {
            "files": run.expired_files, "jobs": run.expired_jobs, "bytes": run.removed_blobs, "staging": run.staging,
        }  # fmt: skip
        for kind, number in removed.items():
            self.removed.labels(kind).inc(number)
        self.freed.inc(run.freed_bytes)
        self.errors.inc(run.errors)
        if run.swept_to is not None:
            self.orphans.set(run.orphans)
            self.missing.set(run.missing)
        if run.stopped == "done" and run.ended_at is not None:
            self.ended.set(run.ended_at.timestamp())
        self.sweep_off.set(sweep_off is not None)
