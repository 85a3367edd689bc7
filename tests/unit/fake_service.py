"""A small service in memory that speaks the wire types over real HTTP: for tests of the SDK and the command line."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID, uuid4

from custody import wire

KEY = "wharf-test-key"
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MODEL = wire.ModelReference(name="yolo11n", version=1, digest="0" * 64)
WORKER = wire.Worker(name="w1", engine="openvino", model_version=1, slots=4, seen_at=NOW)
BUS = wire.Detection(class_id=5, label="bus", confidence=0.94, box=wire.Box(x1=3.1, y1=228.9, x2=795.6, y2=729.4))


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Trouble:
    """What happens to the next request instead of its answer: a status with headers, or, where `status` is None, a
    connection that closes; `done` says whether the request takes effect all the same."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    done: bool = False


class FakeService:
    """`seconds`: how long a job runs; `upload_seconds`: how long an upload waits for its answer; `workers`: how many
    live. Bytes that start with `not a picture` are refused at the upload, those that start with `broken` turn out in
    their job."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seconds = 0.0
        self.upload_seconds = 0.0
        self.workers = 2
        self.model = _model()
        self.pool = wire.Pool(name=MODEL.name, state=wire.PoolState.ACTIVE, waiting=7, running=2, workers=[WORKER])
        self.requests: list[Request] = []
        self.troubles: list[Trouble] = []
        self.files: dict[UUID, wire.File] = {}
        self.blobs: dict[str, bytes] = {}
        self.jobs: dict[UUID, tuple[float, wire.Job]] = {}
        self.keys: dict[UUID, wire.Key] = {}
        self.tenant = wire.Tenant(name="default", file_retention_days=None, job_retention_days=None)
        self.receipts: dict[str, wire.PurgeReceipt] = {}
        self.replays: dict[str, tuple[int, Any]] = {}
        self.lock = threading.Lock()

    def made(self, method: str, path: str = "") -> list[Request]:
        """The requests of a method whose path starts with `path`, in their order."""
        return [each for each in self.requests if each.method == method and each.path.startswith(path)]

    def answer(self, request: Request) -> tuple[int, Any]:
        """Status and a wire type, bytes or None."""
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _problem(401, "unauthenticated", "This key is not known here")
        for method, pattern, handler in self._routes():
            found = re.fullmatch(pattern, request.path)
            if method == request.method and found:
                key = request.headers.get("idempotency-key")
                if key is None:
                    return handler(request, *found.groups())
                if key not in self.replays:
                    self.replays[key] = handler(request, *found.groups())
                return self.replays[key]
        return _problem(404, "not_found", f"There is no {request.path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., tuple[int, Any]]]]:
        return [
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files", self._list_files),
            ("HEAD", "/v1/files/sha256:(.*)", lambda _, digest: (200 if digest in self.blobs else 404, None)),
            ("POST", "/v1/files/sha256:(.*)", self._take),
            ("GET", "/v1/files/([^/]*)", lambda _, each: self._of(self.files, each)),
            ("GET", "/v1/files/([^/]*)/content", self._content),
            ("PATCH", "/v1/files/([^/]*)", self._change_file),
            ("DELETE", "/v1/files/([^/]*)", self._let_go),
            ("GET", "/v1/tenant", lambda _: (200, self.tenant)),
            ("PATCH", "/v1/tenant", self._change_tenant),
            ("POST", "/v1/predict", self._predict),
            ("POST", "/v1/jobs", self._submit),
            ("GET", "/v1/jobs", self._list_jobs),
            ("GET", "/v1/jobs/([^/]*)", self._job),
            ("GET", "/v1/jobs/([^/]*)/results", self._results),
            ("POST", "/v1/jobs/([^/]*)/cancel", self._cancel),
            ("POST", "/v1/jobs/retry", self._retry),
            ("POST", "/v1/jobs/([^/]*)/rerun", self._rerun),
            ("GET", "/v1/models", lambda _: (200, wire.ModelList(items=[self.model]))),
            ("GET", "/v1/models/([^/]*)", self._model),
            ("POST", "/v1/models/([^/]*)/retire", self._retire),
            ("GET", "/v1/pools", lambda _: (200, wire.PoolList(items=[self.pool]))),
            ("POST", "/v1/pools/([^/]*)/(pause|drain|resume)", self._set_pool),
            ("POST", "/v1/keys", self._create_key),
            ("GET", "/v1/keys", lambda _: (200, wire.KeyList(items=list(self.keys.values())))),
            ("DELETE", "/v1/keys/([^/]*)", lambda _, each: self._remove(self.keys, each)),
        ]

    def _upload(self, request: Request) -> tuple[int, Any]:
        time.sleep(self.upload_seconds)
        parts = [(name, content) for part, name, content in _parts(request) if part == "file"]
        return self._kept(parts, lambda files: (201, wire.FileList(items=files)), request.query.get("expires_in"))

    def _kept(
        self,
        parts: list[tuple[str, bytes]],
        then: Callable[[list[wire.File]], tuple[int, Any]],
        expires_in: str | None = None,
    ) -> tuple[int, Any]:
        if any(content.startswith(b"not a picture") for _, content in parts):
            return _problem(415, "unsupported_media_type", "The bytes are of no accepted format", field="file")
        return then([self._file(name, content, expires_in) for name, content in parts])

    def _file(self, filename: str | None, content: bytes, expires_in: str | None = None) -> wire.File:
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[digest] = content
        file = wire.File(
            id=uuid4(),
            sha256=digest,
            size=len(content),
            media_type="image/jpeg",
            width=810,
            height=1080,
            orientation=1,
            filename=filename,
            created_at=NOW,
            expires_at=NOW + timedelta(seconds=float(expires_in)) if expires_in else None,
        )
        self.files[file.id] = file
        return file

    def _take(self, request: Request, digest: str) -> tuple[int, Any]:
        if digest not in self.blobs:
            return _problem(404, "not_found", "You hold no file of these bytes")
        return 201, self._file(request.query.get("filename"), self.blobs[digest], request.query.get("expires_in"))

    def _change_file(self, request: Request, each: str) -> tuple[int, Any]:
        status, file = self._of(self.files, each)
        if status != 200:
            return status, file
        patch = wire.FilePatch.model_validate_json(request.body)
        changes = {name: getattr(patch, name) for name in patch.model_fields_set}
        self.files[file.id] = file.model_copy(update=changes)
        return 200, self.files[file.id]

    def _let_go(self, request: Request, each: str) -> tuple[int, Any]:
        if request.query.get("purge") != "true":
            return self._remove(self.files, each)
        if each in self.receipts:
            return 200, self.receipts[each]
        digest = each.removeprefix("sha256:")
        if digest == each:
            status, file = self._of(self.files, each)
            if status != 200:
                return status, file
            digest = file.sha256
        gone = [file.id for file in self.files.values() if file.sha256 == digest]
        if not gone:
            return _problem(404, "not_found", "You have nothing of these bytes")
        receipt = wire.PurgeReceipt(
            id=uuid4(),
            sha256=digest,
            file_ids=gone,
            files=len(gone),
            results=0,
            tasks_cancelled=0,
            purged_at=NOW,
            bytes_gone_by=NOW,
        )
        for file_id in gone:
            del self.files[file_id]
            self.receipts[str(file_id)] = receipt
        return 200, receipt

    def _change_tenant(self, request: Request) -> tuple[int, Any]:
        patch = wire.TenantPatch.model_validate_json(request.body)
        self.tenant = self.tenant.model_copy(update=patch.model_dump(exclude_unset=True))
        return 200, self.tenant

    def _list_files(self, request: Request) -> tuple[int, Any]:
        items, cursor = _page(list(reversed(self.files.values())), request)
        return 200, wire.FilePage(items=items, next_cursor=cursor)

    def _content(self, request: Request, each: str) -> tuple[int, Any]:
        status, file = self._of(self.files, each)
        return (200, self.blobs[file.sha256]) if status == 200 else (status, file)

    def _predict(self, request: Request) -> tuple[int, Any]:
        fields = {part: content.decode() for part, name, content in _parts(request) if name is None}
        parts = [(name, content) for part, name, content in _parts(request) if part == "image"]
        return self._kept(
            parts,
            lambda files: self._start(request, files, fields.get("model"), fields),
            fields.get("file_expires_in"),
        )

    def _submit(self, request: Request) -> tuple[int, Any]:
        submission = wire.JobSubmission.model_validate_json(request.body)
        if submission.model not in (None, MODEL.name):
            return _problem(422, "model_not_found", f"No active model is called {submission.model}", field="model")
        files = [self.files[each.file] for each in submission.inputs if each.file is not None]
        fields = {"metadata": json.dumps(submission.metadata)}
        if submission.expires_in is not None:
            fields["expires_in"] = str(submission.expires_in)
        return self._start(request, files, submission.model, fields)

    def _start(
        self, request: Request, files: list[wire.File], model: str | None, fields: dict[str, str]
    ) -> tuple[int, Any]:
        results = [_result(number, file, self.blobs[file.sha256]) for number, file in enumerate(files)]
        failed = sum(each.error is not None for each in results)
        job = wire.Job(
            id=uuid4(),
            state=wire.JobState.FAILED if failed else wire.JobState.SUCCEEDED,
            model=model or MODEL.name,
            parameters=wire.Parameters(),
            priority=wire.Priority.INTERACTIVE,
            metadata=json.loads(fields.get("metadata", "{}")),
            progress=wire.Progress(done=len(results) - failed, failed=failed, total=len(results)),
            created_at=NOW,
            finished_at=NOW,
            expires_at=NOW + timedelta(seconds=float(fields["expires_in"])) if "expires_in" in fields else None,
            results=results,
        )
        self.jobs[job.id] = (time.monotonic() + self.seconds, job)
        return self._job(request, str(job.id), at_once=202)

    def _job(self, request: Request, each: str, at_once: int = 200) -> tuple[int, Any]:
        status, found = self._of(self.jobs, each)
        if status != 200:
            return status, found
        ends_at, job = found
        wanted = re.fullmatch(r"wait=(\d+)", request.headers.get("prefer", ""))
        if wanted:
            time.sleep(max(0.0, min(float(wanted[1]), ends_at - time.monotonic())))
        if time.monotonic() < ends_at:
            state = wire.JobState.RUNNING if self.workers else wire.JobState.QUEUED
            running = {"state": state, "results": None, "finished_at": None, "ready_workers": self.workers}
            return at_once, job.model_copy(update=running | {"progress": wire.Progress(done=0, failed=0, total=1)})
        many = len(job.results or []) > 100
        return 200, job.model_copy(update={"results": None} if many else {})

    def _list_jobs(self, request: Request) -> tuple[int, Any]:
        wanted = request.query.get("state")
        jobs = [job.model_copy(update={"results": None}) for _, job in reversed(self.jobs.values())]
        items, cursor = _page([job for job in jobs if wanted in (None, job.state)], request)
        return 200, wire.JobPage(items=items, next_cursor=cursor)

    def _results(self, request: Request, each: str) -> tuple[int, Any]:
        status, found = self._of(self.jobs, each)
        if status != 200:
            return status, found
        items, cursor = _page(found[1].results, request)
        return 200, wire.ResultPage(items=items, next_cursor=cursor)

    def _cancel(self, request: Request, each: str) -> tuple[int, Any]:
        _, (_, job) = self._of(self.jobs, each)
        cancelled = job.model_copy(update={"state": wire.JobState.CANCELLED})
        self.jobs[job.id] = (0.0, cancelled)
        return 200, cancelled

    def _rerun(self, request: Request, each: str) -> tuple[int, Any]:
        status, found = self._of(self.jobs, each)
        if status != 200:
            return status, found
        job = found[1].model_copy(update={"id": uuid4(), "rerun_of": found[1].id})
        self.jobs[job.id] = (time.monotonic() + self.seconds, job)
        return self._job(request, str(job.id), at_once=202)

    def _retry(self, request: Request) -> tuple[int, Any]:
        """Two a batch, of three: the second cannot be rerun."""
        wish = wire.RetryRequest.model_validate_json(request.body)
        gone = wire.InputError(code="input_gone", detail="You do not hold the bytes any more.")
        new = [None] * 3 if wish.dry_run else [uuid4(), uuid4(), uuid4()]
        first, second, third = (wire.Retried(job=uuid4(), tenant="acme", failed=1, rerun=each) for each in new)
        if wish.cursor is None:
            refused = second.model_copy(update={} if wish.dry_run else {"rerun": None, "error": gone})
            return 200, wire.RetryBatch(jobs=[first, refused], next_cursor="on")
        return 200, wire.RetryBatch(jobs=[third], next_cursor=None)

    def _model(self, _: Request, name: str) -> tuple[int, Any]:
        return (200, self.model) if name == MODEL.name else _problem(404, "not_found", f"There is no model {name}")

    def _retire(self, request: Request, name: str) -> tuple[int, Any]:
        status, model = self._model(request, name)
        if status != 200:
            return status, model
        wanted = request.query.get("version")
        versions = [
            each.model_copy(update={"state": "retired"}) if wanted in (None, str(each.version)) else each
            for each in model.versions
        ]
        self.model = model.model_copy(update={"versions": versions})
        return 200, self.model

    def _set_pool(self, _: Request, name: str, action: str) -> tuple[int, Any]:
        if name != MODEL.name:
            return _problem(404, "not_found", f"There is no pool {name}")
        states = {"pause": "paused", "drain": "draining", "resume": "active"}
        self.pool = self.pool.model_copy(update={"state": wire.PoolState(states[action])})
        return 200, self.pool

    def _create_key(self, request: Request) -> tuple[int, Any]:
        wanted = wire.KeyRequest.model_validate_json(request.body)
        key = wire.Key(
            id=uuid4(),
            tenant=wanted.tenant or "default",
            name=wanted.name,
            role=wanted.role,
            created_at=NOW,
            revoked_at=None,
        )
        self.keys[key.id] = key
        return 201, wire.NewKey(**key.model_dump(), secret="wharf_secret")

    def _of(self, kept: dict[UUID, Any], each: str) -> tuple[int, Any]:
        found = kept.get(UUID(each))
        return (200, found) if found else _problem(404, "not_found", "There is nothing of this id")

    def _remove(self, kept: dict[UUID, Any], each: str) -> tuple[int, Any]:
        status, found = self._of(kept, each)
        kept.pop(UUID(each), None)
        return (204, None) if status == 200 else (status, found)


@contextmanager
def serving() -> Iterator[FakeService]:
    """A fake service on a free port of the loopback interface."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.service = FakeService(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake service")
    thread.start()
    try:
        yield server.service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    service: FakeService

    def server_bind(self) -> None:
        # HTTPServer's own asks the name server for the host's name.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet an answer: head and body apart would wait for each other's acknowledgement.
    wbufsize = 1 << 16
    server: _Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _respond(self) -> None:
        service = self.server.service
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        request = Request(self.command, unquote(url.path), query, headers, body)
        with service.lock:
            service.requests.append(request)
            trouble = service.troubles.pop(0) if service.troubles else None
        status, answer = service.answer(request) if trouble is None or trouble.done else (0, None)
        if trouble is not None and trouble.status is None:
            self.close_connection = True
            return
        if trouble is not None:
            status, answer = trouble.status or 0, None
        content = answer if isinstance(answer, bytes) else answer.model_dump_json().encode() if answer else b""
        self.send_response(status)
        for name, value in (trouble.headers if trouble else {}).items():
            self.send_header(name, value)
        if isinstance(answer, wire.Problem):
            self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = _respond  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


def _problem(status: int, code: str, detail: str, field: str | None = None) -> tuple[int, wire.Problem]:
    return status, wire.Problem(
        type=f"urn:wharfinger:problem:{code}",
        title=code,
        status=status,
        code=code,
        detail=detail,
        request_id="request-1",
        field=field,
    )


def _parts(request: Request) -> list[tuple[str, str | None, bytes]]:
    """Name, filename and content of each part."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts = []
    for part in message_from_bytes(head + request.body, policy=HTTP).iter_parts():
        disposition = part["Content-Disposition"].params
        parts.append((disposition["name"], disposition.get("filename"), part.get_payload(decode=True)))
    return parts


def _page(items: list[Any], request: Request) -> tuple[list[Any], str | None]:
    start, limit = int(request.query.get("cursor", 0)), int(request.query.get("limit", 100))
    following = start + limit
    return items[start:following], str(following) if following < len(items) else None


def _result(number: int, file: wire.File, content: bytes) -> wire.InputResult:
    broken = content.startswith(b"broken")
    return wire.InputResult(
        input=number,
        state="unprocessable" if broken else "succeeded",
        file_id=file.id,
        filename=file.filename,
        sha256=file.sha256,
        width=file.width,
        height=file.height,
        attempts=1,
        model=None if broken else MODEL,
        parameters=wire.Parameters(),
        detections=None if broken else [] if content.startswith(b"empty") else [BUS],
        error=wire.InputError(code="undecodable_image", detail="The picture cannot be decoded") if broken else None,
    )


def _model() -> wire.Model:
    version = wire.ModelVersion(
        version=1,
        digest=MODEL.digest,
        task="detect",
        classes=["person", "bus"],
        input_width=640,
        input_height=640,
        state="active",
        created_at=NOW,
    )
    return wire.Model(name=MODEL.name, versions=[version], ready_workers=2)
