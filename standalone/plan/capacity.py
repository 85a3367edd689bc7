"""From a load to what it asks for: arithmetic alone."""

from dataclasses import dataclass
from math import ceil

from standalone.plan import constants as of


@dataclass(frozen=True)
class Load:
    """`rate`: pictures a second in the busiest hour, `mean` on average; `size` of each in bytes; files are kept for
    `retention` and results for `results_kept` seconds. `duplicates`: share of the pictures whose bytes are there
    already. `model_ms`: CPU ms on one core, or ms of the device, for one picture; None: YOLO11n's. `device`: `cpu` or
    one of `GPUS`. `cpus`: of each worker. `spare`: of each kind, how many may be away at that rate. `queue`: with
    RabbitMQ."""

    rate: float
    mean: float
    size: float
    retention: float
    results_kept: float
    duplicates: float = 0.0
    model_ms: float | None = None
    device: str = "cpu"
    cpus: int = 2
    spare: int = 1
    queue: bool = True


@dataclass(frozen=True)
class Plan:
    """Bytes, operations a second, bytes a second, CPUs. `worker_rate`: pictures a second of one that is always busy."""

    volume_bytes: float
    files: float
    volume_operations: float
    volume_write_bytes: float
    volume_read_bytes: float
    brokers: int
    relays: int
    workers: int
    worker_rate: float
    worker_cpus: int
    gpus: int
    database_commits: float
    database_cpus: float
    database_bytes: float
    database_connections: int
    queue_messages: float
    queue_cpus: float
    queue_write_bytes: float


def plan(load: Load) -> Plan:
    kept_files = load.mean * (1 - load.duplicates) * load.retention
    chunks = ceil(load.size / of.READ_BYTES.value)
    per_upload = chunks + of.SYNCS.value
    # A duplicate is staged and dropped again; a new file goes once its time is over.
    operations = load.rate * (per_upload + chunks + 1) + load.rate * of.REMOVALS.value
    workers_rate = worker_rate(load)
    brokers = _processes(load, broker_ms(load.size))
    relays = _processes(load, of.RELAY_MS.value) if load.queue else 0
    workers = ceil(load.rate / (workers_rate * of.BUSY.value)) + load.spare
    connections = (
        brokers * (of.BROKER_CONNECTIONS.value + of.SPARE_CONNECTIONS.value)
        + (relays + workers) * (of.FLEET_CONNECTIONS.value + of.SPARE_CONNECTIONS.value)
        + of.OTHER_CONNECTIONS.value
    )
    return Plan(
        volume_bytes=kept_files * load.size / of.USABLE.value,
        files=kept_files,
        volume_operations=operations,
        volume_write_bytes=load.rate * load.size,
        volume_read_bytes=load.rate * load.size,
        brokers=brokers,
        relays=relays,
        workers=workers,
        worker_rate=workers_rate,
        worker_cpus=load.cpus,
        gpus=0 if load.device == "cpu" else 1,
        database_commits=load.rate * of.DATABASE_COMMITS.value,
        database_cpus=_cpus(load.rate, of.DATABASE_MS.value),
        database_bytes=load.mean * max(load.results_kept, load.retention) * of.ROW_BYTES.value,
        database_connections=ceil(connections),
        queue_messages=load.rate if load.queue else 0,
        queue_cpus=_cpus(load.rate, of.QUEUE_MS.value) if load.queue else 0,
        queue_write_bytes=load.rate * of.MESSAGE_BYTES.value * of.QUEUE_REPLICAS.value if load.queue else 0,
    )


def broker_ms(size: float) -> float:
    """CPU ms of a broker, which has one process, for an upload of so many bytes and its answer."""
    return of.BROKER_MS.value + 1000 * size * (1 / of.HASH_BYTES.value + 1 / of.RECEIVE_BYTES.value)


def decode_ms(size: float) -> float:
    return max(of.DECODE_LEAST_MS.value, of.DECODE_MS_PER_MB.value * size / 1e6)


def worker_rate(load: Load) -> float:
    """Pictures a second of one worker that is always busy: the slower of its CPUs and its device."""
    if load.device == "cpu":
        infer = of.INFER_CPU_MS.value if load.model_ms is None else load.model_ms
        return load.cpus * 1000 / (infer + decode_ms(load.size) + of.WORKER_MS.value)
    host = load.cpus * 1000 / (of.GPU_HOST_MS.value + decode_ms(load.size) + of.WORKER_MS.value)
    return min(host, 1000 / (gpu_ms(load.device) if load.model_ms is None else load.model_ms))


def gpu_ms(device: str) -> float:
    return of.GPU_DEVICE_MS.value * of.GPUS[of.REFERENCE_GPU].teraflops / of.GPUS[device].teraflops


def _processes(load: Load, milliseconds: float) -> int:
    """Of one CPU each."""
    return ceil(_cpus(load.rate, milliseconds)) + load.spare


def _cpus(rate: float, milliseconds: float) -> float:
    return rate * milliseconds / 1000 / of.BUSY.value
