"""What a verification counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from custody.integrity import Run


class VerifyMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.checked = Counter("wharf_verify_files", "Files of the volume looked at", registry=self.registry)
        self.bytes = Counter("wharf_verify_bytes", "Bytes read", registry=self.registry)
        self.faults = Counter(
            "wharf_verify_faults", "Files found `corrupt`, `missing` or `unreadable`", ["fault"], registry=self.registry
        )
        for fault in ("corrupt", "missing", "unreadable"):
            self.faults.labels(fault)
        self.quarantined = Gauge(
            "wharf_quarantined", "Contents that are quarantined, after the last run", registry=self.registry
        )
        self.ended = Gauge(
            "wharf_verify_ended_timestamp_seconds", "When the last run ended, by what stopped it", ["stopped"],
            registry=self.registry,
        )  # fmt: skip

    def observe(self, run: Run) -> None:
        """Of a run that has ended."""
        counts = run.counts
        self.checked.inc(counts.checked)
        self.bytes.inc(counts.bytes)
        for fault, found in (
            ("corrupt", counts.corrupt),
            ("missing", counts.missing),
            ("unreadable", counts.unreadable),
        ):
            self.faults.labels(fault).inc(found)
        if counts.quarantined is not None:
            self.quarantined.set(counts.quarantined)
        if run.ended_at is not None:
            self.ended.labels(run.stopped).set(run.ended_at.timestamp())
