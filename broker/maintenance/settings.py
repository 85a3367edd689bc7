"""What cleanup and verify both read from their environment."""

from pydantic import Field
from pydantic_settings import BaseSettings


class QuarantineSettings(BaseSettings):
    quarantine_days: float = Field(
        default=7.0, ge=0, description="Days that a damaged copy is kept once its content is healed"
    )
