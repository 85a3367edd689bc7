"""The settings of `wharf migrate` and `wharf cleanup`."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from custody.audit import YOUNGEST_FORGOTTEN_DAYS
from custody.settings import PressureSettings, ProcessSettings, RetentionSettings, VolumeSettings


class MigrateSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    database_url: SecretStr = Field(
        description="PostgreSQL, as the database's owner or a superuser",
        examples=["postgresql://postgres:SECRET@postgres:5432/wharf"],
    )
    volume: Path | None = Field(default=None, description="Mount of the shared volume; unset: only the database")


class QuarantineSettings(BaseSettings):
    quarantine_days: float = Field(
        default=7.0, ge=0, description="Days that a damaged copy is kept once its content is healed"
    )


class CleanupSettings(PressureSettings, RetentionSettings, QuarantineSettings, VolumeSettings, ProcessSettings):
    audit_retention_days: int = Field(
        default=365, ge=YOUNGEST_FORGOTTEN_DAYS, le=36500, description="Days that a receipt is kept"
    )
    cleanup_grace_seconds: float = Field(
        default=3600.0, ge=0, description="Bytes that nobody refers to any more stay for so long; `--now`: 0"
    )
    staging_hours: float = Field(
        default=24.0, gt=0, description="Age from which an upload in progress is abandoned, and unknown bytes orphans"
    )
    sweep_hours: float = Field(
        default=24.0, ge=0, description="With `--every`: pause between two looks through the whole volume"
    )
    max_orphan_fraction: float = Field(
        default=0.1, ge=0, le=1, description="Of the volume's files: where more are orphans, they are only reported"
    )
    health_port: int = Field(default=9093, ge=0, description="With `--every`: /livez, /readyz, /metrics; 0: none")
    health_host: str = Field(default="127.0.0.1", description="Address of the health port")
