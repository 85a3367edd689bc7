"""The chart's objects with the images that are built here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from contracts.helm import run
from tests.conftest import ROOT
from tests.images.node import Manifest
from tests.support.kubernetes_api import NAMESPACE

CLAIM = "wharf-wharfinger-files"
ADMIN_KEY = "wharf-wharfinger-admin-key"


def chart(images: Mapping[str, str], folder: Path, values: Mapping[str, Any]) -> list[Manifest]:
    """Of a release `wharf`, for the Secrets of the fixture `secrets`."""
    repository, tag = images["broker"].rsplit(":", 1)
    whole = {
        "image": {"registry": repository.rpartition("/")[0], "tag": tag},
        "database": {"existingSecret": "wharfinger-database", "createLogins": True},
        "queue": {"existingSecret": "wharfinger-queue"},
        **values,
    }
    file = folder / "values.json"
    file.write_text(json.dumps(whole))
    options = ("--namespace", NAMESPACE, "--values", str(file))
    return list(yaml.safe_load_all(run("helm", "template", "wharf", str(ROOT / "charts" / "wharfinger"), *options)))
