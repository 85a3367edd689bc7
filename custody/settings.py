"""Settings: read from the environment once, at the start, into one frozen object a process."""

import re
import socket
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError, PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict

from custody.errors import StartError
from custody.pressure import Watermarks
from custody.wire import MOST_DAYS

S = TypeVar("S", bound=BaseSettings)


class ProcessSettings(BaseSettings):
    """What every process that serves needs. Each setting's variable is WHARF_ and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    database_url: SecretStr = Field(
        description="PostgreSQL, under this process's own role",
        examples=["postgresql://wharf_api:SECRET@postgres:5432/wharf"],
    )
    direct_database_url: SecretStr | None = Field(
        default=None,
        description="The same server without a transaction pooler in between, for what outlasts a transaction: LISTEN "
        "and locks. WHARF_DATABASE_URL if unset",
    )
    instance: str = Field(
        default_factory=lambda: re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()),
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        examples=["broker-1"],
        description="Name of this process, kept over restarts and shared with no living one. The host's name if unset",
    )
    log_format: Literal["json", "text"] = Field(default="json", description="`json` for machines, `text` for people")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged")

    @property
    def listen_url(self) -> str:
        return (self.direct_database_url or self.database_url).get_secret_value()

    @property
    def is_pooled(self) -> bool:
        """Whether WHARF_DATABASE_URL leads to a transaction pooler."""
        return self.direct_database_url is not None


class VolumeSettings(BaseSettings):
    volume: Path = Field(description="Mount of the shared volume", examples=["/srv/wharf"])


class QueueSettings(BaseSettings):
    """How to reach RabbitMQ. Each file wins over what the URL says, and is read again for each connection; an empty
    name is none."""

    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    amqp_url: SecretStr | None = Field(
        default=None,
        description="RabbitMQ, amqp:// or amqps://. If unset, workers take their tasks from PostgreSQL, without relays",
        examples=["amqps://wharf-worker:SECRET@rabbitmq:5671/wharf"],
    )
    amqp_username_file: Path | None = Field(default=None, description="File with the user of RabbitMQ")
    amqp_password_file: Path | None = Field(default=None, description="File with the password")
    amqp_ca_file: Path | None = Field(
        default=None, description="Authorities that vouch for RabbitMQ (PEM). If unset, the system's"
    )
    amqp_cert_file: Path | None = Field(default=None, description="Certificate to show RabbitMQ (PEM)")
    amqp_key_file: Path | None = Field(default=None, description="Its key, if not in the same file")

    @field_validator(
        "amqp_username_file", "amqp_password_file", "amqp_ca_file", "amqp_cert_file", "amqp_key_file", mode="before"
    )
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value


class TaskSettings(BaseSettings):
    """What all who mend must agree on."""

    lease_seconds: float = Field(default=30.0, gt=0, description="A worker silent for longer loses its tasks")
    reconcile_seconds: float = Field(default=5.0, gt=0, description="Pause between looks for what a death left behind")
    max_attempts: int = Field(default=3, ge=1, description="Tries before a task fails")


class RetentionSettings(BaseSettings):
    """How long things are kept where neither their owner nor its tenant has said so."""

    file_retention_days: float = Field(
        default=30.0, gt=0, le=MOST_DAYS, description="Days that a file is kept, unless it is pinned"
    )
    job_retention_days: float = Field(
        default=90.0, gt=0, le=MOST_DAYS, description="Days that a job is kept after its end"
    )


class PressureSettings(BaseSettings):
    """When the volume counts as full."""

    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    high_water: float = Field(
        default=0.95, gt=0, le=1, description="Share of the volume in use from which uploads get 507 and cleanups hurry"
    )
    low_water: float = Field(
        default=0.90,
        gt=0,
        lt=1,
        validate_default=True,
        description="Share below which uploads are taken again; less than WHARF_HIGH_WATER",
    )
    headroom_bytes: int = Field(
        default=10 << 30,
        gt=0,
        description="Of a large volume, the high mark keeps so many bytes free and the low one twice as many, "
        "where their shares would be more",
    )

    @field_validator("low_water")
    @classmethod
    def _is_below_the_high_one(cls, low: float, others: ValidationInfo) -> float:
        if low >= others.data.get("high_water", 1):
            raise PydanticCustomError("not_below", "it must be less than WHARF_HIGH_WATER")
        return low

    @property
    def watermarks(self) -> Watermarks:
        return Watermarks(self.high_water, self.low_water, self.headroom_bytes)


def load(settings: type[S], **given: Any) -> S:
    """The settings of a process; `given` overrides the environment. Raises `StartError`, which names each variable at
    fault with an example, and no value: it may be a secret."""
    try:
        return settings(**given)
    except ValidationError as error:
        lines = []
        for fault in error.errors(include_url=False, include_input=False):
            name = str(fault["loc"][0])
            field = settings.model_fields.get(name)
            example = field.examples[0] if field and field.examples else field.get_default() if field else None
            said = "is not set" if fault["type"] == "missing" else f"cannot be used: {fault['msg']}"
            known = fault["type"] != "not_below" and example not in (None, PydanticUndefined)
            hint = "" if not known else f"; for example WHARF_{name.upper()}={example}"
            lines.append(f"WHARF_{name.upper()} {said}{hint}")
        raise StartError("\n".join(lines)) from None


def table(*classes: type[BaseSettings]) -> str:
    """The settings as a Markdown table; the README's is generated with it."""
    rows: dict[tuple[str, str], list[str]] = {}
    for settings in classes:
        for name, field in settings.model_fields.items():
            default = "required" if field.is_required() else _shown(field.default)
            rows.setdefault((f"`WHARF_{name.upper()}`", f"{default} | {field.description}"), []).append(
                settings.__name__.removesuffix("Settings").lower()
            )
    lines = [f"| {name} | {', '.join(processes)} | {rest} |" for (name, rest), processes in rows.items()]
    return "\n".join(["| variable | process | default | meaning |", "|---|---|---|---|", *lines])


def _shown(default: Any) -> str:
    return "" if default is None or default is PydanticUndefined else f"`{default}`"
