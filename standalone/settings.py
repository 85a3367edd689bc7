"""The settings of `wharf up`. What it starts reads its own settings from the same environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

import starter_model
from broker.settings import LeavingSettings
from wharfinger.discovery import default_data_folder


class UpSettings(LeavingSettings):
    data: Path = Field(
        default_factory=default_data_folder,
        description="Folder of `wharf up`: database, volume, first key. If unset, the user's data folder",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="A PostgreSQL of yours, as the database's owner or a superuser, instead of the embedded one",
        examples=["postgresql://postgres:SECRET@localhost:5432/wharf"],
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on")
    model: str = Field(
        default_factory=lambda: str(starter_model.MODEL),
        description="A registered model's name, or a file to register (.onnx, .xml; for the engine ultralytics .pt). "
        "If unset, the starter model",
    )
    cleanup_every_seconds: float = Field(default=300.0, gt=0, description="Pause between two cleanups of `wharf up`")
    ballast_bytes: int = Field(
        default=64 << 20,
        ge=0,
        description="Room that `wharf up` keeps on its disk, and gives its database when the disk is full; 0: none",
    )
    log_format: Literal["json", "text"] = Field(default="text", description="`json` for machines, `text` for people")
