"""Where the service's database and volume are: as the environment says, or in the folder of `wharf up`."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from custody.errors import StartError
from custody.settings import load
from standalone.folder import socket_of_running
from standalone.postgres import url_on
from wharfinger import discovery


class ReachSettings(BaseSettings):
    """As processes read them, but that what is missing is looked for in the folder of `wharf up`."""

    model_config = SettingsConfigDict(env_prefix="WHARF_", frozen=True, extra="ignore")

    database_url: SecretStr | None = None
    volume: Path | None = Field(default=None, examples=["/srv/wharf"])


def is_set_up() -> bool:
    """Whether anything speaks of a service on this machine: the environment, or a folder of `wharf up`, be it root's or
    one in which none runs now."""
    settings = load(ReachSettings)
    folder, usual = discovery.current_data_folder(), discovery.default_data_folder()
    return (
        settings.database_url is not None
        or settings.volume is not None
        or folder != usual
        or usual.exists()
        or discovery.ROOTS_DATA_FOLDER.exists()
    )


def reach(role: str, data: Path | None, *, otherwise: str = "") -> tuple[str, Path]:
    """The database's URL under `role`, and the volume. `data`: the folder of `wharf up`; None: what the environment
    names, or the folder that was last used. Raises `StartError` where there is neither; `otherwise`: what else its
    message is to advise."""
    settings = load(ReachSettings)
    if data is None and settings.database_url is not None:
        if settings.volume is None:
            raise StartError("WHARF_VOLUME is not set; for example WHARF_VOLUME=/srv/wharf")
        return settings.database_url.get_secret_value(), settings.volume
    folder = data or discovery.current_data_folder()
    running = socket_of_running(folder / "postgres")
    if running is None:
        raise StartError(
            f"no service runs in {folder}. Start it with `wharf up`, or set WHARF_DATABASE_URL, for example "
            f"postgresql://{role}:SECRET@postgres:5432/wharf, and WHARF_VOLUME.{otherwise}"
        )
    return url_on(running, role, "wharf"), folder / "volume"
