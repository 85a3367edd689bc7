"""A Kubernetes API over real HTTP that keeps objects, judges rights, and runs Jobs as far as their logs go.

It answers what a real one does where our code can tell the difference: 401 and 403 with a Status, 404, 409 for a name
that is taken, 410 for a page's token that has expired, 422 for what no schema would pass, chunked lists and logs that
follow. A CronJob's history takes its own ended Jobs away at once, and a Job takes its pods with it."""

import json
import re
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.support.certificates import Pair

TOKEN = "a-token"
NAMESPACE = "ml"
KINDS = {
    "pods": "/api/v1",
    "events": "/api/v1",
    "deployments": "/apis/apps/v1",
    "cronjobs": "/apis/batch/v1",
    "jobs": "/apis/batch/v1",
}
ADDRESS = re.compile(r"(?P<group>/api/v1|/apis/[^/]+/v1)/namespaces/(?P<namespace>[^/]+)/(?P<kind>[a-z]+)"
                     r"(/(?P<name>[^/]+)(/(?P<sub>log))?)?$")  # fmt: skip
NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")

Object = dict[str, Any]
Run = Callable[["KubernetesApi", Object], None]


class RefusedError(Exception):
    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


@dataclass
class KubernetesApi:
    """`rights`: verb and resource, as in a Role; `run`: what becomes of a new Job; `taken`: how many new Jobs find
    their name taken; `expiring`: how many pages' tokens expire; `page`: the most objects of one answer; `cut_logs`: how
    many logs break off after a line; `broken_logs`: how many are on a node that is not reached."""

    rights: set[tuple[str, str]] = field(default_factory=set)
    groups: set[str] = field(default_factory=lambda: {"apps", "batch"})
    run: Run | None = None
    taken: int = 0
    expiring: int = 0
    page: int = 500
    refusing: str | None = None
    cut_logs: int = 0
    broken_logs: int = 0
    url: str = ""
    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    logs: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def put(self, kind: str, object: Object) -> Object:
        with self.lock:
            metadata = object["metadata"]
            metadata.setdefault("namespace", NAMESPACE)
            metadata.setdefault("uid", str(uuid.uuid4()))
            self.objects[kind][metadata["name"]] = object
        return object

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        """A file with a login and this server."""
        file = folder / "kubeconfig"
        parts = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        }
        file.write_text(yaml.safe_dump(parts))
        return file

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Object | Iterator[bytes]:
        if path == "/apis":
            return {"kind": "APIGroupList", "groups": [{"name": name} for name in sorted(self.groups)]}
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            wanted = body["spec"]["resourceAttributes"]
            resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
            return {**body, "status": {"allowed": (wanted["verb"], resource) in self.rights}}
        found = ADDRESS.match(path)
        if not found or KINDS.get(found["kind"]) != found["group"]:
            raise RefusedError(404, "NotFound", "the server could not find the requested resource")
        kind, name, sub = found["kind"], found["name"], found["sub"]
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
        resource = f"{kind}/{sub}" if sub else kind
        if (verb, resource) not in self.rights or found["namespace"] != NAMESPACE:
            raise RefusedError(
                403, "Forbidden", f'{resource} is forbidden: User "u" cannot {verb} resource "{resource}" in API group '
                f'"" in the namespace "{found["namespace"]}"',
            )  # fmt: skip
        with self.lock:
            if verb == "create":
                return self._create(kind, body)
            if verb == "list":
                return self._list(kind, query)
            if name not in self.objects[kind]:
                raise RefusedError(404, "NotFound", f'{kind} "{name}" not found')
            if sub:
                return self._log(name)
            return self.delete(kind, name) if verb == "delete" else deepcopy(self.objects[kind][name])

    def delete(self, kind: str, name: str) -> Object:
        """With what it owns."""
        with self.lock:
            if kind == "jobs":
                for pod in [pod for pod, each in self.objects["pods"].items() if job_of(each) == name]:
                    self.delete("pods", pod)
            return self.objects[kind].pop(name)

    def _list(self, kind: str, query: Mapping[str, str]) -> Object:
        wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
        found = [
            deepcopy(each)
            for _, each in sorted(self.objects[kind].items())
            if wanted.items() <= each["metadata"].get("labels", {}).items()
        ]
        about = dict(part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if part)
        found = [each for each in found if all(str(_field(each, path)) == value for path, value in about.items())]
        begin = int(query.get("continue", "0"))
        if begin and self.expiring:
            self.expiring -= 1
            raise RefusedError(
                410, "Expired", "The provided continue parameter is too old to display a consistent list"
            )
        end = begin + min(self.page, int(query.get("limit", "500")))
        following = {"continue": str(end)} if end < len(found) else {}
        return {"kind": "List", "metadata": following, "items": found[begin:end]}

    def _create(self, kind: str, body: Any) -> Object:
        assert kind == "jobs"
        if self.refusing:
            raise RefusedError(422, "Invalid", self.refusing)
        name = body["metadata"]["name"]
        if self.taken or name in self.objects[kind]:
            self.taken = max(0, self.taken - 1)
            raise RefusedError(409, "AlreadyExists", f'jobs.batch "{name}" already exists')
        template = body["spec"]["template"]["spec"]
        if not NAME.match(name) or template.get("restartPolicy") not in ("Never", "OnFailure"):
            raise RefusedError(422, "Invalid", f'Job.batch "{name}" is invalid: spec.template.spec.restartPolicy')
        if any(not isinstance(arg, str) for each in template["containers"] for arg in each.get("args", [])):
            raise RefusedError(422, "Invalid", f'Job.batch "{name}" is invalid: args must be strings')
        job = self.put(kind, {**deepcopy(body), "status": {}})
        threading.Thread(target=self.run or succeed, args=(self, job), daemon=True).start()
        return deepcopy(job)

    def _log(self, name: str) -> Iterator[bytes]:
        pod = self.objects["pods"][name]
        if self.broken_logs:
            self.broken_logs -= 1
            raise RefusedError(502, "BadGateway", "error dialing backend: EOF")
        if "waiting" in state_of(pod):
            container = pod["spec"]["containers"][0]["name"]
            raise RefusedError(400, "BadRequest", f'container "{container}" in pod "{name}" is waiting to start')
        return self._lines(name)

    def _lines(self, name: str) -> Iterator[bytes]:
        sent = 0
        while True:
            with self.lock:
                if name not in self.objects["pods"]:
                    return
                ended = "terminated" in state_of(self.objects["pods"][name])
                new = self.logs.get(name, [])[sent:]
            for line in new:
                sent += 1
                yield f"{line}\n".encode()
                if self.cut_logs:
                    self.cut_logs -= 1
                    raise ConnectionAbortedError
            if ended and not new:
                return
            time.sleep(0.02)


@contextmanager
def kubernetes_api(certificate: Pair | None = None, **settings: Any) -> Iterator[KubernetesApi]:
    api = KubernetesApi(**settings)
    handler = type("Handler", (_Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    api.url = f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pod(name: str, component: str, **given: Any) -> Object:
    """One of release `wharf`, running. `labels`, `env`, `gpus`, `image`, `restarts` and `state` may be given."""
    limits = {"nvidia.com/gpu": str(given["gpus"])} if "gpus" in given else {}
    environment = [{"name": key, "value": value} for key, value in given.get("env", {}).items()]
    image = given.get("image", "registry.example:5000/ml/wharfinger-worker-cpu:0.2.0")
    container = {"name": component, "image": image, "env": environment, "resources": {"limits": limits}}
    state = given.get("state", {"running": {}})
    status = {"name": component, "ready": "running" in state, "restartCount": given.get("restarts", 0), "state": state}
    return {
        "metadata": {"name": name, "labels": labels(component, **given.get("labels", {}))},
        "spec": {"nodeName": "node-1", "containers": [container]},
        "status": {
            "phase": "Running",
            "startTime": "2026-11-30T07:00:00Z",
            "containerStatuses": [status],
            "conditions": [{"type": "Ready", "status": str(status["ready"])}],
            **given.get("status", {}),
        },
    }


def deployment(name: str, replicas: int, component: str = "worker", **given: Any) -> Object:
    template = pod(name, component, **given)
    found = template["metadata"]["labels"]
    return {
        "metadata": {"name": name, "labels": found},
        "spec": {"replicas": replicas, "template": {"metadata": {"labels": found}, "spec": template["spec"]}},
    }


def warning(kind: str, name: str, message: str, at: str = "2026-11-30T07:00:00Z") -> Object:
    """An event about an object, as a controller or a kubelet records it."""
    return {
        "metadata": {"name": f"{name}.{uuid.uuid4().hex[:16]}"},
        "type": "Warning",
        "reason": "Failed",
        "message": message,
        "lastTimestamp": at,
        "involvedObject": {"kind": kind, "name": name},
    }


def cron_job(name: str = "wharf-cleanup", release: str = "wharf", component: str = "cleanup") -> Object:
    container = {"name": component, "image": "wharfinger-broker:0.2.0", "args": [component, "--max-seconds", "600"],
                 "futureField": {"kept": True}}  # fmt: skip
    found = labels(component, **{"app.kubernetes.io/instance": release})
    template = {"restartPolicy": "Never", "containers": [container]}
    job = {
        "metadata": {"labels": found},
        "spec": {
            "backoffLimit": 1,
            "activeDeadlineSeconds": 1800,
            "template": {"metadata": {"labels": found}, "spec": template},
        },
    }
    return {"metadata": {"name": name, "labels": found}, "spec": {"schedule": "0 0 1 1 *", "jobTemplate": job}}


def labels(component: str, **more: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/part-of": "wharfinger",
        "app.kubernetes.io/instance": "wharf",
        "app.kubernetes.io/component": component,
        **more,
    }


def state_of(pod: Object) -> Object:
    state: Object = pod["status"]["containerStatuses"][0]["state"]
    return state


def start_pod(api: KubernetesApi, job: Object, number: int = 0) -> Object:
    """What the Job's controller does: a pod, which waits."""
    name = job["metadata"]["name"]
    made = pod(f"{name}-{number}", "cleanup", state={"waiting": {"reason": "ContainerCreating"}})
    made["metadata"]["labels"] = {"batch.kubernetes.io/job-name": name}
    return api.put("pods", made)


def set_state(api: KubernetesApi, pod: Object, state: str, **details: Any) -> None:
    with api.lock:
        pod["status"]["containerStatuses"][0]["state"] = {state: details}


def end_job(api: KubernetesApi, job: Object, condition: str, message: str = "") -> None:
    """A CronJob that controls it, and keeps none that has ended, takes it away at once."""
    with api.lock:
        job["status"] = {"conditions": [{"type": condition, "status": "True", "message": message}]}
        if any(owner.get("controller") for owner in job["metadata"].get("ownerReferences", [])):
            api.delete("jobs", job["metadata"]["name"])


def job_of(pod: Object) -> str | None:
    name: str | None = pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name")
    return name


def succeed(api: KubernetesApi, job: Object) -> None:
    made = start_pod(api, job)
    time.sleep(0.05)
    set_state(api, made, "running")
    for line in ("bytes removed  3 files", "errors         0"):
        with api.lock:
            api.logs.setdefault(made["metadata"]["name"], []).append(line)
        time.sleep(0.05)
    set_state(api, made, "terminated", exitCode=0)
    end_job(api, job, "Complete")


def _field(object: Object, path: str) -> Any:
    found: Any = object
    for key in path.split("."):
        found = found.get(key, {})
    return found


class _Handler(BaseHTTPRequestHandler):
    api: KubernetesApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        self.api.asked.append(f"{self.command} {split.path}")
        try:
            if self.headers.get("Authorization", "").lower() != f"bearer {TOKEN}":
                raise RefusedError(401, "Unauthorized", "Unauthorized")
            answer = self.api.answer(self.command, split.path, query, body)
        except RefusedError as refused:
            said = {"kind": "Status", "status": "Failure", "message": refused.message, "reason": refused.reason}
            self._send(refused.status, {**said, "code": refused.status})
            return
        if isinstance(answer, dict):
            self._send(201 if self.command == "POST" else 200, answer)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in answer:
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        except ConnectionAbortedError:
            self.close_connection = True
            return
        self.wfile.write(b"0\r\n\r\n")

    do_POST = do_DELETE = do_GET  # noqa: N815 (the names are the server's)

    def _send(self, status: int, value: Object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""
