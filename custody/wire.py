"""The public wire types: what the API answers and what the SDK reads. Nothing here imports the service."""

import json
import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    Json,
    StrictBool,
    StrictInt,
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the bytes, lower-case hex")]

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""PostgreSQL stores every character but NUL."""


OBJECT_BYTES = 8 * 1024
"""Of the JSON that a job carries for its owner: every list of jobs has it."""


def _storable(value: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(value, allow_nan=False)
    if len(text) > OBJECT_BYTES:
        raise ValueError(f"an object may have {OBJECT_BYTES} bytes at most")
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):
        raise ValueError("NUL characters cannot be stored")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_storable)]
"""What PostgreSQL stores as jsonb: no NUL, no NaN, no infinity. Up to `OBJECT_BYTES`."""


class Wire(BaseModel):
    """A value that crosses the wire. Readers ignore fields they do not know, so that servers may add some."""

    model_config = ConfigDict(frozen=True)


Finite = Annotated[float, Field(allow_inf_nan=False)]


class Box(Wire):
    """An upright box in pixels of the original picture, EXIF orientation applied; (x1, y1) is the upper left corner."""

    x1: Finite
    y1: Finite
    x2: Finite
    y2: Finite


Point = tuple[Finite, Finite]
"""x and y in pixels of the original picture, EXIF orientation applied."""


class Mask(Wire):
    """The outline of what an object covers, as polygons: several where something in front parts it, none where it is
    too small to have an inside. Holes are not told."""

    polygons: list[Annotated[list[Point], Field(min_length=3)]]


class Keypoint(Wire):
    """A part of an object, such as a knee, in pixels of the original picture; the model gives its parts an order.
    `confidence`: that it is there and can be seen; null where the model does not say."""

    x: Finite
    y: Finite
    confidence: float | None = Field(default=None, ge=0, le=1)


class RotatedBox(Wire):
    """A box that is turned with its object: its corners in clockwise order. They may lie outside the picture."""

    corners: list[Point] = Field(min_length=4, max_length=4)


class Probability(Wire):
    """How sure a classifier is that the picture is of this class."""

    class_id: int
    label: str
    confidence: float = Field(ge=0, le=1)


def _optional(description: str) -> Any:
    """A field that is left out where it is absent: a result may have a thousand detections."""
    return Field(default=None, exclude_if=lambda value: value is None, description=description)


class Detection(Wire):
    """What was found, and where. What the model's task adds is there for its detections and left out for others'."""

    class_id: int
    label: str
    confidence: float = Field(ge=0, le=1)
    box: Box = Field(description="Around the whole of it; for classification, the picture")
    mask: Mask | None = _optional("Segmentation: what it covers")
    keypoints: list[Keypoint] | None = _optional("Pose: its parts, in the model's order")
    rotated_box: RotatedBox | None = _optional("Oriented boxes: the box that is turned with it")
    probabilities: list[Probability] | None = _optional("Classification: the likeliest classes, the likeliest first")


class Parameters(Wire):
    """What a request may tune. `conf`: least confidence kept; `iou`: overlap above which the weaker box goes;
    `max_detections`: boxes kept for each picture."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conf: float = Field(default=0.25, ge=0, le=1, allow_inf_nan=False)
    iou: float = Field(default=0.7, ge=0, le=1, allow_inf_nan=False)
    max_detections: int = Field(default=300, ge=1, le=1000)


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    BATCH = "batch"


MOST_SECONDS = 30 * 24 * 3600
"""To a job's deadline."""

ExpiresIn = Annotated[
    float,
    Field(
        gt=0,
        le=MOST_SECONDS,
        allow_inf_nan=False,
        description="Seconds after which the job is `expired` unless it has ended; without it, it waits for ever",
    ),
]


MOST_DAYS = 3650
"""For which a file or job is kept; what shall stay for longer is pinned."""

KeptSeconds = Annotated[
    float,
    Field(
        gt=0,
        le=MOST_DAYS * 24 * 3600,
        allow_inf_nan=False,
        description="Seconds for which the file is kept; without it, as long as the tenant keeps files",
    ),
]


class UploadFields(Wire):
    """The text fields beside the files of POST /v1/files."""

    expires_in: KeptSeconds | None = None


CACHE = (
    "false: every input is inferred, whatever was found in the same bytes before, and nothing of it is kept for later"
)


class PredictFields(Parameters):
    """The text fields beside the pictures of POST /v1/predict; `metadata` is a JSON object."""

    model: Text | None = None
    priority: Priority = Priority.INTERACTIVE
    expires_in: ExpiresIn | None = None
    file_expires_in: KeptSeconds | None = Field(default=None, exclude_if=lambda value: value is None)
    cache: bool = Field(default=True, exclude_if=lambda value: value, description=CACHE)
    metadata: Json[JsonObject] = Field(default_factory=dict)


class ModelReference(Wire):
    name: str
    version: int
    digest: Sha256


class EngineReference(Wire):
    """What computed a result. `version`: null where the engine tells none."""

    name: str
    version: str | None


class Timings(Wire):
    """Milliseconds. `queue`: from submission to the claim; `read`: file to memory; `decode`: memory to pixels;
    `infer`: pixels to boxes, scaling and suppression included. `commit`: what the worker's write before this
    one took, from its slot's answer until the database had it safe, the first being its registration: no result holds
    how long its own took, which a trace tells. None: stored by a release that did not tell."""

    queue: float
    read: float
    decode: float
    infer: float
    commit: float | None = None


class InputError(Wire):
    """Why one input has no result; `code` is stable."""

    code: str
    detail: str


class InputResult(Wire):
    """What became of one input of a job: detections, or an error, or neither yet."""

    input: int = Field(ge=0, description="Position in the job's inputs, from 0")
    state: str = Field(
        description="queued | running | succeeded | failed (it ran) | unprocessable (it can never work) | cancelled"
    )
    file_id: UUID | None
    filename: str | None
    sha256: Sha256
    width: int = Field(description="Pixels, EXIF orientation applied")
    height: int = Field(description="Pixels, EXIF orientation applied")
    attempts: int
    model: ModelReference | None = None
    engine: EngineReference | None = Field(default=None, description="null in results of older workers")
    verified: bool | None = Field(
        default=None,
        description="true: the SHA-256 of the bytes was compared before they were decoded; null as for `engine`",
    )
    parameters: Parameters
    detections: list[Detection] | None = None
    timings: Timings | None = None
    cached: bool = Field(
        default=False,
        description="true: the answer to an earlier input of the same bytes. `model`, `engine`, `verified` and "
        "`timings`, but for `queue`, are then of the inference that found it",
    )
    error: InputError | None = None
    purged_at: datetime | None = Field(
        default=None, description="When its owner had the picture purged, with its result and its filename"
    )


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Progress(Wire):
    """What is neither done nor failed has not ended, or was cancelled."""

    done: int = Field(description="Inputs that succeeded")
    failed: int = Field(description="Inputs that failed or are unprocessable")
    total: int


class Job(Wire):
    id: UUID
    state: JobState
    model: str
    parameters: Parameters
    priority: Priority
    metadata: dict[str, Any]
    progress: Progress
    created_at: datetime
    finished_at: datetime | None
    expires_at: datetime | None = Field(default=None, description="What has not ended by then does not begin any more")
    rerun_of: UUID | None = Field(default=None, description="The job whose inputs it runs again")
    ready_workers: int | None = Field(
        default=None, description="Living workers of its model now: with 0 it waits for one; null once it has ended"
    )
    results: list[InputResult] | None = Field(
        default=None, description="Inline for jobs of up to 100 inputs; see GET /v1/jobs/{id}/results for all"
    )


class JobPage(Wire):
    items: list[Job]
    next_cursor: str | None


class ResultPage(Wire):
    items: list[InputResult]
    next_cursor: str | None


class FileState(StrEnum):
    """`corrupt`, `missing`: the bytes on the volume are damaged or gone. An upload of the same bytes puts them back,
    for every file that has them."""

    PRESENT = "present"
    CORRUPT = "corrupt"
    MISSING = "missing"


class File(Wire):
    id: UUID
    sha256: Sha256
    size: int = Field(description="Bytes")
    media_type: str
    width: int = Field(description="Pixels, EXIF orientation applied")
    height: int = Field(description="Pixels, EXIF orientation applied")
    orientation: int = Field(ge=1, le=8, description="EXIF orientation, 1 where the file has none")
    filename: str | None
    created_at: datetime
    expires_at: datetime | None = Field(description="Until then it is kept, and while it is pinned")
    pinned: bool = Field(default=False, description="Kept until it is unpinned, whatever `expires_at` says")
    state: FileState = Field(
        default=FileState.PRESENT, description="Of its bytes: what is `corrupt` or `missing` has to be uploaded again"
    )


def _rfc3339(value: object) -> object:
    """Of what Pydantic takes for a time, only what RFC 3339 does: no numbers, no dates alone, no missing offset."""
    if isinstance(value, datetime) or value is None:
        return value
    if not isinstance(value, str) or not re.fullmatch(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})", value
    ):
        raise ValueError("a time is written as in RFC 3339, with its offset: 2031-05-01T12:00:00Z")
    return datetime.fromisoformat(value)


Moment = Annotated[AwareDatetime, BeforeValidator(_rfc3339)]


class FilePatch(Wire):
    """What is left out stays as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    expires_at: Moment | None = Field(
        default=None, description="A time to come; null: from now on as long as the tenant keeps files"
    )
    pinned: StrictBool = Field(default=False, description="true: kept until it is unpinned")


class PurgeReceipt(Wire):
    """What a purge took from its tenant. Of what others hold it says nothing."""

    id: UUID
    sha256: Sha256
    file_ids: list[UUID] = Field(description="All of the tenant's files of these bytes, deleted and expired ones too")
    files: int
    results: int = Field(description="Results that are gone")
    tasks_cancelled: int = Field(description="Inputs that had not ended")
    purged_at: datetime = Field(description="From then on nobody reads any of it")
    bytes_gone_by: datetime = Field(description="Until then a cleanup has taken the tenant's bytes from the volume")


class FileList(Wire):
    """The answer to an upload: one item a part, in the order of the parts."""

    items: list[File]


class FilePage(Wire):
    items: list[File]
    next_cursor: str | None


class JobInput(Wire):
    """One input of a job: exactly one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: UUID | None = None
    sha256: Sha256 | None = None


MOST_INPUTS = 100_000
"""Of one job. A service may allow fewer."""


class JobSubmission(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Text | None = Field(default=None, description="A model's name; the service's default where absent")
    inputs: Annotated[list[JobInput], FailFast()] = Field(min_length=1, max_length=MOST_INPUTS)
    params: Parameters = Parameters()
    priority: Priority | None = Field(
        default=None, description="Where absent: interactive, but batch for more than 100 inputs"
    )
    metadata: JsonObject = Field(default_factory=dict)
    expires_in: ExpiresIn | None = None
    cache: StrictBool = Field(default=True, exclude_if=lambda value: value, description=CACHE)


EndedUnwell = Literal["failed", "cancelled", "expired"]


class RetryRequest(Wire):
    """Which ended jobs with failed inputs to rerun: those that fit all that is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: EndedUnwell | None = None
    model: Text | None = None
    error_code: Text | None = Field(default=None, description="At least one input failed with this code")
    metadata: JsonObject | None = Field(default=None, description="What the job's metadata contains")
    created_after: AwareDatetime | None = Field(default=None, description="Created then or later")
    created_before: AwareDatetime | None = Field(default=None, description="Created before")
    limit: int = Field(default=100, ge=1, le=1000, description="Jobs in one batch, at most")
    cursor: str | None = Field(default=None, description="`next_cursor` of the batch before")
    dry_run: StrictBool = Field(default=False, description="Tells what matches and reruns nothing")
    all_tenants: StrictBool = Field(default=False, description="Every tenant's jobs: the operator's admins only")


class Retried(Wire):
    """A job that a retry was about, and what came of it."""

    job: UUID
    tenant: str
    failed: int = Field(description="Its inputs that failed or are unprocessable: what a rerun runs")
    rerun: UUID | None = Field(description="The new job; null in a dry run, and where there is an error")
    error: InputError | None = Field(default=None, description="Why it cannot be rerun")


class RetryBatch(Wire):
    jobs: list[Retried]
    next_cursor: str | None = Field(description="Where the walk goes on; null at its end")


class ModelVersion(Wire):
    version: int
    digest: Sha256
    task: str
    classes: list[str]
    input_width: int
    input_height: int
    state: str = Field(description="active | retired")
    created_at: datetime


class Model(Wire):
    name: str
    versions: list[ModelVersion] = Field(description="Newest first")
    ready_workers: int = Field(description="Living workers that serve it now")


class ModelList(Wire):
    items: list[Model]


class PoolState(StrEnum):
    """`paused`: nothing of it begins. `draining`: what waits is worked off, and no job is accepted."""

    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"


class Worker(Wire):
    name: str
    engine: str
    model_version: int
    slots: int = Field(description="Pictures at a time")
    release: str | None = Field(default=None, description="Of Wharfinger; null: one before 0.2.0")
    seen_at: datetime


class Pool(Wire):
    """What waits for one model, and who works on it. The counts are of all tenants."""

    name: str = Field(description="The model's name")
    state: PoolState
    waiting: int = Field(description="Inputs that wait, as of a moment ago; counted up to the pool's limit")
    running: int = Field(description="Inputs that workers hold")
    workers: list[Worker] = Field(description="The living ones")


class PoolList(Wire):
    items: list[Pool]


class ClusterPod(Wire):
    """A process of the service: its pod, and when it last reported to the database. What only Kubernetes knows is null
    where `source` is heartbeats."""

    name: str
    phase: str | None = Field(default=None, description="Pending | Running | Succeeded | Failed | Unknown")
    ready: bool | None = None
    reason: str | None = Field(
        default=None, description="Why it is not at work, as Kubernetes names it: CrashLoopBackOff, Unschedulable"
    )
    restarts: int | None = None
    node: str | None = None
    gpus: int | None = None
    version: str | None = Field(
        default=None, description="Its image's tag; the release that it reports, where `source` is heartbeats"
    )
    started_at: datetime | None = None
    seen_at: datetime | None = Field(description="Its last heartbeat; brokers have none")


class ClusterPool(Wire):
    name: str = Field(description="The model's name")
    state: PoolState
    waiting: int = Field(description="As of GET /v1/pools")
    running: int
    desired_replicas: int | None = Field(description="Workers that its Deployments ask for; null where it is not known")
    pods: list[ClusterPod]


class Cluster(Wire):
    """Where the service's processes run."""

    source: Literal["kubernetes", "heartbeats"] = Field(
        description="heartbeats: the cluster cannot be asked, and `notice` says why"
    )
    notice: str | None = Field(description="What is missing here, and what to do about it")
    namespace: str | None
    pools: list[ClusterPool]
    brokers: list[ClusterPod] = Field(description="Empty where `source` is heartbeats: they have none")
    relays: list[ClusterPod]


class HealthState(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


class Health(Wire):
    status: HealthState = Field(description="unavailable: a check failed. degraded: there are warnings")
    checks: dict[str, str] = Field(description="What each part answered: `ok`, or what is wrong with it")


class DatabaseHealth(Wire):
    version: str
    latency_ms: float = Field(description="Of one statement, there and back")


class VolumeHealth(Wire):
    used_bytes: int
    free_bytes: int
    takes_uploads: bool = Field(description="false where it is nearly full: uploads get 507 until there is more room")


class CustodyHealth(Wire):
    quarantined: int = Field(
        description="Contents of all tenants whose bytes are damaged or missing; 1000 stands for that many or more"
    )
    sweep_off: str | None = Field(description="Why bytes without a row are not removed: a restore is suspected")


class Relay(Wire):
    name: str
    started_at: datetime
    seen_at: datetime
    living: bool = Field(description="false: it has been silent for long")
    fault: str | None = Field(description="Why it reaches no queue")
    release: str | None = Field(default=None, description="Of Wharfinger; null: one before 0.2.0")


class HealthDetails(Health):
    warnings: list[str] = Field(description="What somebody should look at, and what to do")
    database: DatabaseHealth
    volume: VolumeHealth | None = Field(description="null where it does not answer")
    custody: CustodyHealth
    relays: list[Relay] = Field(description="None where workers take their tasks from the database themselves")
    pools: list[Pool]


class Role(StrEnum):
    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"


class Key(Wire):
    id: UUID
    tenant: str
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None


class NewKey(Key):
    secret: str | None = Field(description="Shown once, so null in a replay; the service keeps its SHA-256 only")


class KeyList(Wire):
    items: list[Key]


class KeyRequest(Wire):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text = Field(min_length=1, max_length=100)
    role: Role
    tenant: str | None = Field(
        default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Another tenant: the operator's admins only"
    )


Days = Annotated[StrictInt, Field(ge=1, le=MOST_DAYS)]


class Tenant(Wire):
    """How long a tenant's things are kept; null: as long as the service keeps them where nobody says otherwise."""

    name: str
    file_retention_days: int | None = Field(description="For files, from their upload on")
    job_retention_days: int | None = Field(description="For jobs and their results, from their end on")


class TenantPatch(Wire):
    """What is left out stays as it is. Files that are there keep their `expires_at`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_retention_days: Days | None = None
    job_retention_days: Days | None = None


class Outcome(StrEnum):
    DONE = "done"
    REPLAYED = "replayed"


class ReceiptFile(Wire):
    id: UUID | None = Field(description="null where it was asked for by its SHA-256")
    sha256: str | None


class Receipt(Wire):
    """That somebody did or read something. `action` is `noun.deed`; later releases may add some."""

    id: UUID
    at: datetime
    key_id: UUID = Field(description="Of the key that asked; GET /v1/keys names it")
    request_id: str
    action: str
    outcome: Outcome = Field(description="replayed: an Idempotency-Key was sent again, and nothing done")
    files: list[ReceiptFile]
    jobs: list[UUID]
    keys: list[UUID] = Field(description="That were created or revoked")
    names: list[str] = Field(description="Of models, pools or tenants")
    details: dict[str, Any]


class ReceiptPage(Wire):
    items: list[Receipt]
    next_cursor: str | None


class Problem(Wire):
    """RFC 9457 problem details. `code` is stable; `detail` says what happened and what to do next."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    field: str | None = None
