"""Makes an environment ready for an image: `pack.py FOLDER [KIND...]` takes out what no process of ours opens, and
compiles the rest, since a process on a read-only root cannot do that for the next one."""

import compileall
import py_compile
import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

# Below site-packages.
UNUSED: dict[str, Sequence[str]] = {
    "common": (
        "**/tests",
        "**/*.a",
        # 500 programming languages, none of which we print.
        "pygments/lexers/[a-z]*.py",
        "pygments/lexers/_*_builtins.py",
        "swagger_ui_bundle/vendor/**/*.map",
        "swagger_ui_bundle/vendor/**/swagger-ui-es-bundle*.js",
        "swagger_ui_bundle/vendor/**/swagger-ui-standalone-preset.js",
    ),
    # We ask the API for paths and take its JSON: neither the second, asynchronous client with what it stands on, nor
    # a class for each kind of object. The package imports those on demand.
    "cluster": (
        "kubernetes/aio",
        "kubernetes/client/api/[!_]*.py",
        "kubernetes/client/models/[!_]*.py",
        "aiohappyeyeballs",
        "aiohttp",
        "aiohttp_retry",
        "aiosignal",
        "frozenlist",
        "multidict",
        "propcache",
        "yarl",
    ),
    # Spans in OTLP are told without Google's own messages, and with the names for OpenTelemetry's own parts alone.
    "telemetry": (
        "google/api",
        "google/cloud",
        "google/gapic",
        "google/logging",
        "google/longrunning",
        "google/rpc",
        "google/type",
        "opentelemetry/semconv/_incubating/attributes/[!_o]*.py",
        "opentelemetry/semconv/_incubating/metrics/[!_o]*.py",
    ),
    # OpenVINO asks each plugin and front end that is there, and goes on without the others. A worker of this kind runs
    # on the CPU, from ONNX and from OpenVINO's own format.
    "openvino-cpu": (
        "openvino/include",
        "openvino/libs/cache.json",
        "openvino/libs/libopenvino_intel_gpu_plugin.so",
        "openvino/libs/libopenvino_intel_npu_plugin.so",
        "openvino/libs/libopenvino_gguf_frontend.so*",
        "openvino/libs/libopenvino_jax_frontend.so*",
        "openvino/libs/libopenvino_paddle_frontend.so*",
        "openvino/libs/libopenvino_pytorch_frontend.so*",
        "openvino/libs/libopenvino_tensorflow_frontend.so*",
        "openvino/libs/libopenvino_tensorflow_lite_frontend.so*",
    ),
}


def pack(folder: Path, kinds: Sequence[str]) -> None:
    for packages in list(folder.glob("lib/python3*/site-packages")):
        for pattern in (pattern for kind in kinds for pattern in UNUSED[kind]):
            for path in list(packages.glob(pattern)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        # Without a kind, as the GPU's: all stays as its makers built it.
        if kinds:
            for library in packages.rglob("*.so*"):
                cut_symbols(library)
        # Some packages hold files of other Pythons: what cannot be compiled stays as it is, as with pip. Never compared
        # with their sources again, which no one can change, and the same bytes in each build.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(packages, quiet=2, invalidation_mode=mode)


def cut_symbols(library: Path) -> None:
    """What stands in a 64-bit shared object behind all that is ever loaded: the section headers and a debugger's
    symbols, as binutils' `strip` would, which the base lacks. uvloop has 12 MB of them."""
    content = library.read_bytes()
    if content[:6] != b"\x7fELF\x02\x01":
        return
    [table] = struct.unpack_from("<Q", content, 0x20)
    entry, entries = struct.unpack_from("<HH", content, 0x36)
    end = 0
    for header in range(table, table + entry * entries, entry):
        # Where a segment begins, and its bytes in the file.
        offset, size = (struct.unpack_from("<Q", content, header + at)[0] for at in (0x08, 0x20))
        end = max(end, offset + size)
    if end < len(content):
        # No section headers: e_shoff, and e_shentsize to e_shstrndx.
        library.write_bytes(content[:0x28] + bytes(8) + content[0x30:0x3A] + bytes(6) + content[0x40:end])


if __name__ == "__main__":
    pack(Path(sys.argv[1]), sys.argv[2:])
