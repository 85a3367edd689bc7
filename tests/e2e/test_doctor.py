"""`wharf doctor --predict`: what an operator, or `helm test`, learns of a service from outside."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from standalone.doctor import trial
from standalone.doctor.command import doctor
from tests.e2e.service import Service, free_port

DOCTOR = typer.Typer()
DOCTOR.command()(doctor)


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WHARF_SERVER", "WHARF_API_KEY", "WHARF_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WHARF_DATA", str(tmp_path))


def examine(url: str, key: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    ended = CliRunner().invoke(
        DOCTOR, ["--predict", "--json", *arguments], env={"WHARF_URL": url, "WHARF_API_KEY": key}
    )
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    findings = json.loads(ended.output)
    return ended.exit_code, [finding for finding in findings if finding["subject"] == "predict"]


def test_the_boxes_of_the_starter_model_come_back_and_the_pictures_do_not_stay_for_long(up: Service) -> None:
    status, findings = examine(up.url, up.new_key(tenant="examined"))
    assert (status, {finding["state"] for finding in findings}) == (0, {"ok"})
    [page, _] = [finding["detail"] for finding in findings]
    assert re.match(r"digits, a page of digits: (1 [0-9], )+1 [0-9], [0-9.]+ s", page)
    [(longest,)] = up.ask(
        "SELECT max(extract(epoch FROM f.expires_at - f.created_at))::int FROM wharf.files f"
        " JOIN wharf.tenants t ON t.id = f.tenant_id WHERE t.name = 'examined'"
    )
    assert 0 < int(str(longest)) <= trial.KEEP_SECONDS


def test_a_picture_of_the_operators_on_which_nothing_is_found_is_a_fault(up: Service, tmp_path: Path) -> None:
    blank = tmp_path / "blank.png"
    Image.new("RGB", (64, 64), "white").save(blank)
    status, findings = examine(up.url, up.new_key(), "--image", str(blank))
    assert (status, [finding["state"] for finding in findings]) == (1, ["ok", "fault"])
    assert "found nothing" in findings[-1]["detail"]


def test_pictures_of_ours_on_which_a_model_finds_nothing_are_a_warning(
    up: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(blank, "PNG")
    monkeypatch.setattr(trial, "pictures", lambda: {"a wall": blank.getvalue()})
    status, findings = examine(up.url, up.new_key())
    assert (status, [finding["state"] for finding in findings]) == (0, ["ok", "warning"])
    assert "--image" in findings[-1]["advice"]


def test_a_service_that_cannot_be_asked_is_a_fault(up: Service) -> None:
    assert examine(up.url, "wharf_unknown")[0] == 1
    status, [finding] = examine(up.url, up.key, "--model", "nobodys")
    assert (status, finding["state"]) == (1, "fault")
    assert "nobodys" in finding["detail"]
    assert examine(f"http://127.0.0.1:{free_port()}", up.key)[0] == 1
    assert examine(up.url, up.key, "--image", "/nowhere.png")[0] == 1


def test_an_answer_that_does_not_come_is_a_fault(up: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "WAIT_SECONDS", 1.0)
    with up.client() as admin:
        admin.post("/v1/pools/digits/pause")
        try:
            status, [finding] = examine(up.url, up.key)
        finally:
            admin.post("/v1/pools/digits/resume")
    assert (status, finding["state"]) == (1, "fault")
    assert finding["detail"].startswith("digits: no answer within 1 s")
