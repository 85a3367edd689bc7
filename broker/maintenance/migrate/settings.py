"""What `wharf migrate` reads from its environment."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class MigrateSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    database_url: SecretStr = Field(
        description="PostgreSQL, as the database's owner or a superuser",
        examples=["postgresql://postgres:SECRET@postgres:5432/wharf"],
    )
    volume: Path | None = Field(default=None, description="Mount of the shared volume; unset: only the database")
