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
    direct_database_url: SecretStr | None = Field(
        default=None,
        description="The same server without a transaction pooler in between, for what outlasts a transaction: LISTEN "
        "and locks. WHARF_DATABASE_URL if unset",
    )
    volume: Path | None = Field(default=None, description="Mount of the shared volume; unset: only the database")

    @property
    def owner_url(self) -> str:
        """For migrations, whose lock and role outlast a transaction."""
        return (self.direct_database_url or self.database_url).get_secret_value()
