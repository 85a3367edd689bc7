"""The client: pictures in, jobs with their detections out."""

import json
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import httpx

from custody.wire import File, Job, Priority
from wharfinger import discovery
from wharfinger.audit import Audit
from wharfinger.files import Files
from wharfinger.jobs import Jobs, parameters
from wharfinger.keys import Keys
from wharfinger.models import Models
from wharfinger.patience import Patience
from wharfinger.pools import Pools
from wharfinger.session import Session
from wharfinger.source import Picture, Report, Source, source_of
from wharfinger.tenant import OwnTenant

# One request up to here; beyond, file by file, so that a broken connection costs one file and not all of them.
_ONE_REQUEST_PICTURES = 16
_ONE_REQUEST_BYTES = 32 * 1024 * 1024
_FIRST_WAIT_SECONDS = 20.0


class Client:
    """A connection to Wharfinger.

        with Client() as client:
            job = client.predict("bus.jpg")
            for result in job.results:
                print(result.filename, result.detections)

    `server` and `api_key` are found as `wharfinger.discovery.find` says where they are not given. `timeout`: seconds
    without any progress after which a connection counts as lost. `patience`: how long calls are tried again.
    Safe to use from several threads. Every method may raise the errors of `wharfinger.errors`.
    """

    def __init__(
        self,
        server: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        *,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._session = Session(discovery.find(server, api_key), timeout, patience or Patience(), transport)
        self.files = Files(self._session)
        self.jobs = Jobs(self._session)
        self.models = Models(self._session)
        self.pools = Pools(self._session)
        self.keys = Keys(self._session)
        self.tenant = OwnTenant(self._session)
        self.audit = Audit(self._session)

    def predict(
        self,
        *pictures: Picture,
        model: str | None = None,
        conf: float | None = None,
        iou: float | None = None,
        max_detections: int | None = None,
        priority: Priority | str | None = None,
        metadata: dict[str, Any] | None = None,
        expires_in: float | None = None,
        file_expires_in: float | None = None,
        cache: bool = True,
        wait: float | None = None,
    ) -> Job:
        """One job on these pictures, paths or encoded bytes, once it has ended; or as it is after `wait` seconds.
        `expires_in`: seconds after which it ends as `expired` unless it has ended; `file_expires_in`: seconds for which
        the pictures are kept; `cache`: whether a picture may be answered with what was found in it before.

        The job's `state` says how it ended and its `results` what was found, in the order of the pictures: an input
        that failed has an `error` there and leaves the others theirs. Raises ValueError for no pictures or parameters
        out of range, OSError where a path cannot be read.
        """
        if not pictures:
            raise ValueError("predict needs at least one picture")
        tuned = parameters(conf, iou, max_detections)
        sources = [
            source_of(each, f"picture-{number}" if isinstance(each, bytes) else None)
            for number, each in enumerate(pictures, start=1)
        ]
        if len(sources) > _ONE_REQUEST_PICTURES or sum(each.size for each in sources) > _ONE_REQUEST_BYTES:
            job = self.jobs.submit(
                [self.files.upload_source(each, expires_in=file_expires_in) for each in sources],
                model=model,
                conf=conf,
                iou=iou,
                max_detections=max_detections,
                priority=priority,
                metadata=metadata,
                expires_in=expires_in,
                cache=cache,
            )
            return self.jobs.finish(job, wait)
        fields = {
            "model": model,
            "priority": None if priority is None else str(Priority(priority)),
            "metadata": None if metadata is None else json.dumps(metadata, allow_nan=False),
            "expires_in": expires_in,
            "file_expires_in": file_expires_in,
            "cache": None if cache else "false",
            **(tuned.model_dump(exclude_unset=True) if tuned else {}),
        }
        first = _FIRST_WAIT_SECONDS if wait is None else min(wait, _FIRST_WAIT_SECONDS)
        job = self._predict_in_one_request(sources, {k: v for k, v in fields.items() if v is not None}, first)
        return self.jobs.finish(job, None if wait is None else wait - first)

    def upload(
        self,
        picture: Picture,
        *,
        filename: str | None = None,
        expires_in: float | None = None,
        progress: Report | None = None,
    ) -> File:
        """`files.upload`: put a file into custody, streamed from disk; bytes held already are not sent again."""
        return self.files.upload(picture, filename=filename, expires_in=expires_in, progress=progress)

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _predict_in_one_request(self, sources: list[Source], fields: dict[str, Any], wait: float) -> Job:
        def body(stack: ExitStack) -> dict[str, Any]:
            images = [("image", (each.filename, stack.enter_context(each.open()))) for each in sources]
            return {"data": fields, "files": images}

        return self._session.post("/v1/predict", Job, body, wait=wait)
