"""What the plan computes with. Each says where it is from: measured by us, set by us, said by others, or assumed."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["measured", "ours", "said by its maker", "assumed"]


@dataclass(frozen=True)
class Constant:
    value: float
    unit: str
    source: Source
    where: str
    """What it is, and how it came about."""


BENCH = "bench/README.md, 2 shared cores of an AMD EPYC, photo of 810 x 1080"
BLOCKS = "building blocks on the same machine"

INFER_CPU_MS = Constant(42, "CPU ms", "measured", f"YOLO11n by OpenVINO, the slots' part without decoding; {BENCH}")
DECODE_LEAST_MS = Constant(3.2, "CPU ms", "measured", f"decoding a JPEG of 810 x 1080; {BLOCKS}")
DECODE_MS_PER_MB = Constant(
    10, "CPU ms a MB", "assumed", "41 ms were measured for 12 megapixels; that such a JPEG has 4 MB is assumed"
)
WORKER_MS = Constant(2, "CPU ms", "measured", f"the worker's parent process; {BENCH}")
BROKER_MS = Constant(7, "CPU ms", "measured", f"upload and answer, small files; {BENCH}")
HASH_BYTES = Constant(665e6, "bytes a CPU second", "measured", f"SHA-256; {BLOCKS}")
RECEIVE_BYTES = Constant(
    1e9, "bytes a CPU second", "assumed", "receiving, parsing and writing; the parser alone takes 2.2e9"
)
DATABASE_MS = Constant(5, "CPU ms", "measured", f"all of PostgreSQL's processes; {BENCH}")
DATABASE_COMMITS = Constant(
    5, "commits", "assumed", "2.9 were measured for a stored picture, the upload's and the submission's added"
)
QUEUE_MS = Constant(1.2, "CPU ms", "measured", f"RabbitMQ, one node; {BENCH}")
RELAY_MS = Constant(1.3, "CPU ms", "measured", f"relay, one picture a message; {BENCH}")
MESSAGE_BYTES = Constant(600, "bytes", "ours", "a message names a task; the bench holds it to less than this")
ROW_BYTES = Constant(
    6000, "bytes", "assumed", "rows and indexes of file, task and result, ten detections; more objects need more"
)
SYNCS = Constant(3, "operations", "ours", "fdatasync of the file, rename, fsync of the folder")
REMOVALS = Constant(2, "operations", "ours", "unlink, fsync of the folder")
READ_BYTES = Constant(1 << 20, "bytes", "ours", "of one read or write of a file's bytes")
USABLE = Constant(0.90, "share", "ours", "of the volume, below WHARF_LOW_WATER")
BUSY = Constant(0.70, "share", "assumed", "of a process's time at the planned rate; what is above is for peaks")
SPARE_CONNECTIONS = Constant(4, "connections", "ours", "of each process beside its pool: notices, locks")
BROKER_CONNECTIONS = Constant(16, "connections", "ours", "WHARF_DATABASE_CONNECTIONS")
FLEET_CONNECTIONS = Constant(8, "connections", "ours", "pool of a relay or a worker")
OTHER_CONNECTIONS = Constant(
    20, "connections", "assumed", "migration, cleanup, verification, doctor, and PostgreSQL's reserve"
)
QUEUE_REPLICAS = Constant(3, "copies", "assumed", "nodes of RabbitMQ that hold each queue")
GPU_DEVICE_MS = Constant(
    3.0, "ms", "assumed", "YOLO11n, float16, in batches on a T4; its maker says 1.5 ms with TensorRT, which is not used"
)
GPU_HOST_MS = Constant(4, "CPU ms", "assumed", "what a picture costs the host beside decoding it")


@dataclass(frozen=True)
class Gpu:
    """`teraflops`: dense float16, as its maker says."""

    teraflops: float


GPUS = {"t4": Gpu(65), "l4": Gpu(121), "a10": Gpu(125), "a100": Gpu(312)}
REFERENCE_GPU = "t4"
"""The one that `GPU_DEVICE_MS` is of; the others are computed by their arithmetic alone."""

ALL = {name.lower(): value for name, value in list(globals().items()) if isinstance(value, Constant)}
