"""What helm asks a cluster for while it renders: Secrets that were made once are kept, and what is missing is told."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.helm import WHEELS
from tests.charts.rendering import CHART, QUEUED, run

DATABASE_KEYS = ("owner-url", "api-url", "relay-url", "worker-url", "cleanup-url")
QUEUE_KEYS = ("relay-url", "worker-url")

KINDS = {
    "": ("ConfigMap", "PersistentVolumeClaim", "Pod", "Secret", "Service", "ServiceAccount"),
    "apps": ("Deployment", "StatefulSet"),
    "batch": ("CronJob", "Job"),
    "networking.k8s.io": ("NetworkPolicy",),
    "policy": ("PodDisruptionBudget",),
}
"""That the chart makes, by group. All have a version v1."""

OF_THE_RELEASE = {
    "labels": {"app.kubernetes.io/managed-by": "Helm"},
    "annotations": {"meta.helm.sh/release-name": "wharf", "meta.helm.sh/release-namespace": "ml"},
}
"""Without which helm refuses to take over what is there already."""

Secrets = dict[str, dict[str, str]]


class Namespace:
    """`ml` of a cluster, as far as helm looks at it: an API that lists its kinds and gives objects by name."""

    def __init__(self, secrets: Secrets, claims: tuple[str, ...] = ()) -> None:
        def encoded(data: dict[str, str]) -> dict[str, str]:
            return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}

        self.objects: dict[str, dict[str, Any]] = {
            "serviceaccounts/default": {"kind": "ServiceAccount"},
            **{f"secrets/{name}": {"kind": "Secret", "data": encoded(data)} for name, data in secrets.items()},
            **{f"persistentvolumeclaims/{name}": {"kind": "PersistentVolumeClaim"} for name in claims},
        }

    def answer(self, path: str) -> dict[str, Any] | None:
        match path.strip("/").split("/"):
            case ["version"]:
                return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                groups = [{"name": name, "versions": [_version(name)]} for name in KINDS if name]
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
            case ["api", "v1"]:
                return _resources("")
            case ["apis", group, "v1"] if group in KINDS:
                return _resources(group)
            case ["api", "v1", "namespaces", "ml", kind, name] if f"{kind}/{name}" in self.objects:
                metadata = {"name": name, "namespace": "ml", **OF_THE_RELEASE}
                return {"apiVersion": "v1", "metadata": metadata, **self.objects[f"{kind}/{name}"]}
        return None


def _version(group: str) -> dict[str, str]:
    return {"groupVersion": f"{group}/v1".removeprefix("/"), "version": "v1"}


def _resources(group: str) -> dict[str, Any]:
    found = [
        {"name": f"{kind.lower()}s", "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
        for kind in KINDS[group]
    ]
    return {"kind": "APIResourceList", **_version(group), "resources": found}


@contextmanager
def served(namespace: Namespace, folder: Path) -> Iterator[str]:
    """The path of a kubeconfig that leads there."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = namespace.answer(self.path.partition("?")[0])
            body = found or {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
            content = json.dumps(body).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
    parts = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "ml"}}],
    }
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(parts))
    try:
        yield str(file)
    finally:
        server.shutdown()
        server.server_close()


def template(namespace: Namespace, folder: Path, values: dict[str, Any], release: str) -> Any:
    with served(namespace, folder) as kubeconfig:
        arguments = [
            "--namespace",
            "ml",
            "--dry-run=server",
            "--disable-openapi-validation",
            "--kubeconfig",
            kubeconfig,
        ]
        return run(release, "template", "wharf", str(CHART), *arguments, values=values)


def secrets_of(printed: str) -> Secrets:
    several = [found for found in yaml.safe_load_all(printed) if found and found["kind"] == "Secret"]
    return {
        found["metadata"]["name"]: {
            **{key: base64.b64decode(value).decode() for key, value in found.get("data", {}).items()},
            **found.get("stringData", {}),
        }
        for found in several
    }


@pytest.mark.parametrize("release", WHEELS)
def test_secrets_that_were_made_are_kept_and_what_they_lack_is_added(tmp_path: Path, release: str) -> None:
    values = {"evaluation": {"enabled": True}}
    first = template(Namespace({}), tmp_path, values, release)
    assert first.returncode == 0, first.stderr
    made = secrets_of(first.stdout)
    assert len(made) == 3
    lacking = {name: dict(data) for name, data in made.items()}
    for key in ("owner-url", "cleanup-url"):
        del lacking["wharf-wharfinger-evaluation-database"][key]
    del lacking["wharf-wharfinger-evaluation-queue"]["worker-url"]
    del lacking["wharf-wharfinger-admin-key"]["api-key"]
    again = template(Namespace(lacking), tmp_path, values, release)
    assert again.returncode == 0, again.stderr
    second = secrets_of(again.stdout)
    for name, data in lacking.items():
        assert data.items() <= second[name].items()
        assert second[name].keys() == made[name].keys()
    assert second["wharf-wharfinger-admin-key"]["api-key"].startswith("wharf_")
    # The servers have their passwords already.
    for secret, key in (("database", "owner-url"), ("queue", "worker-url")):
        assert (
            second[f"wharf-wharfinger-evaluation-{secret}"][key] == made[f"wharf-wharfinger-evaluation-{secret}"][key]
        )


DATABASE, QUEUE = "postgresql://a:s3cret@db.example.com/wharf?sslmode=require", "amqps://a:s3cret@mq/wharf"
FOUND: Secrets = {
    "db": dict.fromkeys(DATABASE_KEYS, DATABASE),
    "mq": dict.fromkeys(QUEUE_KEYS, QUEUE),
    "ca": {"ca.crt": "c"},
}


def direct(url: str) -> Secrets:
    """With a pooler at port 6432, and the server itself at `url`."""
    pooled = dict.fromkeys(DATABASE_KEYS, "postgresql://a:s3cret@pooler:6432/wharf")
    return {**FOUND, "db": {**pooled, **{f"{key}-direct": url for key in DATABASE_KEYS}}}


POOLED = {"existingSecret": "db", "port": 6432, "directKeySuffix": "-direct"}


@pytest.mark.parametrize(
    ("secrets", "values", "told"),
    [
        ({**FOUND}, {}, None),
        ({"db": FOUND["db"]}, {}, "queue.existingSecret: the namespace ml has no Secret mq"),
        ({"mq": FOUND["mq"]}, {}, "database.existingSecret: the namespace ml has no Secret db"),
        ({"mq": FOUND["mq"]}, {"preflight": False}, None),
        ({**FOUND, "db": {"owner-url": DATABASE}}, {}, "The Secret db has no key api-url"),
        (FOUND, {"database": {"existingSecret": "db", "caSecret": "ca"}}, None),
        (FOUND, {"database": {"existingSecret": "db", "kedaUrlKey": "keda-url"}}, "no key keda-url"),
        (FOUND, {"database": {"existingSecret": "db", "directKeySuffix": "-direct"}}, "no key owner-url-direct"),
        (FOUND, {"adminKey": {"existingSecret": "admin"}}, "adminKey.existingSecret"),
        (FOUND, {"image": {"pullSecrets": ["pull"]}}, "image.pullSecrets"),
        (FOUND, {"storage": {"existingClaim": "files"}}, None),
        (FOUND, {"storage": {"existingClaim": "other"}}, "storage.existingClaim: the namespace ml has no claim other"),
        ({"db": {key: DATABASE for key in DATABASE_KEYS if key != "relay-url"}}, {"queue": {"enabled": False}}, None),
        ({}, {"evaluation": {"enabled": True}}, None),
        (FOUND, {"database": {"existingSecret": "db", "port": 6432}}, "owner-url in the Secret db leads to port 5432"),
        (direct(DATABASE), {"database": POOLED}, None),
        (
            direct(DATABASE),
            {"database": POOLED | {"directPort": 5433}},
            "owner-url-direct in the Secret db leads to port",
        ),
        ({**FOUND, "mq": dict.fromkeys(QUEUE_KEYS, "amqp://a:s3cret@mq/wharf")}, {}, "leads to port 5672"),
        ({**FOUND, "mq": dict.fromkeys(QUEUE_KEYS, "amqp://mq")}, {"networkPolicy": {"enabled": False}}, None),
        (
            {**FOUND, "db": dict.fromkeys(DATABASE_KEYS, "postgresql://a:s3cret@b:5432,[::1]:5433/wharf")},
            {},
            "leads to port 5433",
        ),
        ({**FOUND, "db": dict.fromkeys(DATABASE_KEYS, "host=db port=6543 password=s3cret")}, {}, None),
    ],
)
def test_what_is_missing_in_the_namespace_is_told(
    secrets: Secrets, values: dict[str, Any], told: str | None, tmp_path: Path
) -> None:
    ended = template(Namespace(secrets, claims=("files",)), tmp_path, QUEUED | values, "35")
    assert (ended.returncode == 0) == (told is None), ended.stderr
    assert told is None or told in ended.stderr
    assert "s3cret" not in ended.stderr
