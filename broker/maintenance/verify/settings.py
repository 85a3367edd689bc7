"""The settings of `wharf verify`."""

from pydantic import Field

from broker.maintenance.settings import QuarantineSettings
from custody.settings import ProcessSettings, VolumeSettings


class VerifySettings(QuarantineSettings, VolumeSettings, ProcessSettings):
    verify_bytes_per_second: float = Field(default=50_000_000, gt=0, description="How fast the volume is read")
    verify_threads: int = Field(default=4, ge=1, le=64, description="Files read at once")
    health_port: int = Field(default=9094, ge=0, description="With --every: /livez, /readyz, /metrics; 0: none")
    health_host: str = Field(default="127.0.0.1", description="Address of the health port")
