"""The settings of a worker process."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from custody.settings import ProcessSettings, QueueSettings, TaskSettings, VolumeSettings
from inference_worker.slots import START_SECONDS


class WorkerSettings(VolumeSettings, QueueSettings, TaskSettings, ProcessSettings):
    model: str = Field(
        description="The model to serve: a registered name, or a file to register under its own name (.onnx, .xml; "
        "for the engine ultralytics .pt)",
        examples=["yolo11n", "/models/yolo11n.onnx"],
    )
    engine: str = Field(default="openvino", description="An engine's name, or `module:Class` of your own")
    precision: Literal["auto", "f32"] = Field(
        default="auto", description="`auto`: the fastest the device offers (bf16 on AMX); `f32`: exact"
    )
    compiled_folder: Path | None = Field(
        default=None,
        description="Folder of this worker's user alone, which keeps compiled models from one start to the next. If "
        "unset or empty, each start compiles",
        examples=["/var/cache/wharfinger"],
    )
    compiled_bytes: int = Field(default=512 << 20, gt=0, description="Most that is kept there")
    slots: int = Field(default=0, ge=0, description="Pictures at once, a process each; 0: as many as CPUs are granted")
    max_batch: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Most pictures that a slot looks at together, where the engine gains by it (ultralytics on CUDA)",
    )
    max_delay_ms: float = Field(
        default=2.0,
        ge=0,
        description="Longest that a free device waits for a picture that is being decoded, to take it along; never "
        "longer than that saves",
    )
    prefetch: int = Field(default=1, ge=0, description="Tasks claimed ahead of each picture that is looked at")
    start_seconds: float = Field(
        default=START_SECONDS, gt=0, description="Longest that a slot may take to load the model and warm up"
    )
    task_seconds: float = Field(default=30.0, gt=0, description="Longest work on one picture before its slot is killed")
    read_retry_seconds: float = Field(
        default=20.0,
        ge=0,
        description="How long one try looks for a file that does not appear; together they outlast NFS's caches (60 s)",
    )
    verify_reads: Literal["never", "sampled", "always"] = Field(
        default="sampled",
        description="Whether a picture's SHA-256 is compared before it is decoded; of those that cannot be decoded "
        "it always is",
    )
    verify_sample: float = Field(default=0.01, ge=0, le=1, description="Share of the pictures that `sampled` compares")
    max_pixels: int = Field(default=100_000_000, gt=0, description="Largest picture that is decoded")
    amqp_consumer_timeout_seconds: float = Field(
        default=1800.0, gt=0, description="RabbitMQ's own consumer_timeout: a delivery held longer is taken away"
    )
    drain_seconds: float = Field(
        default=25.0, ge=0, description="After SIGTERM, time for what runs before it is given back"
    )
    health_port: int = Field(default=9091, ge=0, description="/livez, /readyz, /metrics; 0: none")
    health_host: str = Field(default="127.0.0.1", description="Address of the health port")

    @field_validator("compiled_folder", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @property
    def verified_share(self) -> float:
        """Of the pictures, from 0 to 1."""
        return {"never": 0.0, "sampled": self.verify_sample, "always": 1.0}[self.verify_reads]
