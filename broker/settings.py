"""The settings of a broker process."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from custody.settings import PressureSettings, ProcessSettings, RetentionSettings, VolumeSettings
from custody.wire import MOST_DAYS, MOST_INPUTS


class LeavingSettings(BaseSettings):
    """How a broker goes; whoever is to end it must know how long that takes."""

    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    leave_seconds: float = Field(
        default=0.0,
        ge=0,
        description="After SIGTERM /readyz says so, and requests are taken for so long, until every proxy knows it",
    )
    drain_seconds: float = Field(
        default=25.0,
        ge=0,
        description="After SIGTERM and WHARF_LEAVE_SECONDS, time for open requests before they are cut off",
    )


class BrokerSettings(LeavingSettings, PressureSettings, VolumeSettings, RetentionSettings, ProcessSettings):
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on")
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="/metrics without a key on this port too; 0: with a key on the API's"
    )
    max_file_bytes: int = Field(default=1 << 30, gt=0, description="Largest file")
    max_parts: int = Field(default=64, gt=0, description="Files in one request")
    max_pixels: int = Field(default=100_000_000, gt=0, description="Largest picture, width x height")
    max_request_bytes: int = Field(default=8 << 20, gt=0, description="Largest JSON body")
    max_job_inputs: int = Field(default=MOST_INPUTS, gt=0, le=MOST_INPUTS, description="Inputs of one job")
    request_head_seconds: float = Field(default=20.0, gt=0, description="Longest that a request's headers may take")
    body_idle_seconds: float = Field(
        default=30.0, gt=0, description="Longest that no byte of a body may come, before its request gets 408"
    )
    min_upload_bytes_per_second: float = Field(
        default=1024.0,
        ge=0,
        description="Slowest that a body may come, over WHARF_BODY_IDLE_SECONDS of waiting for it, before it gets 408",
    )
    max_pool_backlog: int = Field(
        default=1_000_000, gt=0, lt=2**31, description="Inputs that may wait for one model before jobs get 503"
    )
    max_tenant_backlog: int = Field(
        default=200_000,
        gt=0,
        lt=2**31,
        description="Inputs of one tenant that may wait for one model before its jobs get 429",
    )
    max_wait_seconds: float = Field(default=60.0, ge=0, description="Longest `Prefer: wait` that is granted")
    result_cache: bool = Field(
        default=True,
        description="Whether a picture is answered with what its tenant's same bytes gave before, unless its request "
        "says `cache: false`",
    )
    default_model: str | None = Field(
        default=None, description="Model of requests that name none. If unset, the only one registered"
    )
    ready_needs_worker: bool = Field(
        default=False, description="/readyz waits for a warm worker too: for one machine, where both start together"
    )
    purge_hours: float = Field(
        default=24,
        gt=0,
        le=24 * MOST_DAYS,
        description="Told in the receipt of a purge: within so long a cleanup removes the bytes",
    )
    audit_reads: Literal["none", "content", "all"] = Field(
        default="content",
        description="Reads that leave a receipt: `none`, `content` (of files and results), `all` (lists and facts too)",
    )
    kubeconfig: Path | None = Field(
        default=None,
        description="How to ask Kubernetes for GET /v1/cluster. If unset, as the pod's service account, if it has one",
    )
    database_connections: int = Field(default=16, gt=0, description="Most connections to the database")
