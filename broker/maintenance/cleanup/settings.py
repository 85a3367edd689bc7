"""What `wharf cleanup` reads from its environment."""

from pydantic import Field

from broker.maintenance.settings import QuarantineSettings
from custody.audit import YOUNGEST_FORGOTTEN_DAYS
from custody.settings import PressureSettings, ProcessSettings, RetentionSettings, VolumeSettings


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
