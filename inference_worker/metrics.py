"""What a worker counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from custody.wire import Timings

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class WorkerMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks = Counter("wharf_tasks", "Tasks worked on", ["model", "outcome"], registry=self.registry)
        self.held = Gauge("wharf_tasks_held", "Tasks claimed and not yet ended", registry=self.registry)
        self.cache = Counter(
            "wharf_cache", "Tasks of the result cache: `hit` and `twin` were not worked on; `miss` was, and is kept",
            ["model", "outcome"], registry=self.registry,
        )  # fmt: skip
        self.rejected = Counter(
            "wharf_messages_rejected", "Messages that are none of ours, by why", ["reason"], registry=self.registry
        )
        self.stage_seconds = Histogram(
            "wharf_task_stage_seconds", "Queue wait, read, decode, inference and commit of one picture",
            ["model", "stage"], buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "wharf_task_batch_size", "Pictures that a picture was looked at together with, itself included", ["model"],
            buckets=SIZES, registry=self.registry,
        )  # fmt: skip

    def observe(self, model: str, timings: Timings, batch_size: int) -> None:
        """All but the commit, which is over later."""
        self.batch_size.labels(model).observe(batch_size)
        for stage, milliseconds in timings.model_dump(exclude={"commit"}).items():
            self.stage_seconds.labels(model, stage).observe(milliseconds / 1000)

    def observe_commit(self, model: str, milliseconds: float) -> None:
        self.stage_seconds.labels(model, "commit").observe(milliseconds / 1000)
