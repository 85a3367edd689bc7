"""What a broker counts."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from broker.room import Room
from custody.cleanup import Run
from custody.files import Kept
from custody.installation import SweepOff

NAN = float("nan")
SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class BrokerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "wharf_http_requests", "Requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "wharf_http_request_seconds", "First byte in to last byte out", ["method", "route"],
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.upload_bytes = Counter("wharf_upload_bytes", "Bytes of files kept", registry=self.registry)
        self.uploads = Counter(
            "wharf_uploads", "Files kept; `held`: the tenant had the bytes already", ["held"], registry=self.registry
        )
        self.uploads_refused = Counter(
            "wharf_uploads_refused", "Requests whose files were not taken", ["reason"], registry=self.registry
        )
        self.refused = Counter(
            "wharf_jobs_refused", "Jobs for which there was no model or no room", ["reason"], registry=self.registry
        )
        self.inputs = Counter("wharf_job_inputs", "Inputs submitted in jobs", ["model"], registry=self.registry)
        self.cached = Counter(
            "wharf_job_inputs_cached", "Of these, inputs that were answered from the cache as they came", ["model"],
            registry=self.registry,
        )  # fmt: skip
        self.cleanup = Gauge(
            "wharf_last_cleanup", "Of the newest row in the history of cleanups", ["figure"], registry=self.registry
        )
        self.sweep_off = Gauge(
            "wharf_last_cleanup_sweep_off", "1 where a restore is suspected, and orphans are only reported",
            registry=self.registry,
        )  # fmt: skip
        self.quarantined = Gauge(
            "wharf_blobs_quarantined", "Contents whose bytes are damaged or missing; 1000 is that many or more",
            registry=self.registry,
        )  # fmt: skip
        self.pool_backlog = Gauge(
            "wharf_pool_backlog", "Inputs that wait in a pool, of all tenants; every broker says the same", ["pool"],
            registry=self.registry,
        )  # fmt: skip

    def tell(self, run: Run | None, sweep_off: SweepOff | None, quarantined: int) -> None:
        """`run`: the newest cleanup."""
        self.sweep_off.set(sweep_off is not None)
        self.quarantined.set(quarantined)
        if run is None:
            return
        figures = {
            "files": run.expired_files, "jobs": run.expired_jobs, "bytes": run.removed_blobs,
            "freed_bytes": run.freed_bytes, "orphans": run.orphans, "missing": run.missing, "errors": run.errors,
        }  # fmt: skip
        for figure, value in figures.items():
            self.cleanup.labels(figure).set(value)
        if run.started_at is not None:
            self.cleanup.labels("started_seconds").set(run.started_at.timestamp())

    def tell_backlog(self, waiting: Mapping[str, int] | None) -> None:
        """By pool. None: it is not known, and an old figure would keep workers, or send them away."""
        if waiting is None:
            self.pool_backlog.clear()
            return
        for pool, inputs in waiting.items():
            self.pool_backlog.labels(pool).set(inputs)

    def watch(self, room: Room) -> None:
        """From now on the volume's figures are served too."""
        volume = Gauge("wharf_volume_bytes", "Of the volume: `used`, `free`", ["kind"], registry=self.registry)
        volume.labels("used").set_function(lambda: room.usage.used if room.usage else NAN)
        volume.labels("free").set_function(lambda: room.usage.free if room.usage else NAN)
        pressed = Gauge(
            "wharf_volume_pressed", "1 where the volume is nearly full: uploads get 507", registry=self.registry
        )
        pressed.set_function(lambda: room.is_pressed)

    def count(self, kept: Kept) -> None:
        self.uploads.labels(str(kept.held_before).lower()).inc(len(kept.files))
        self.upload_bytes.inc(sum(file.size for file in kept.files))
