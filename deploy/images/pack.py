"""Makes an environment ready for an image: `pack.py FOLDER [KIND...]` takes out what no process of ours opens, and
compiles the rest, since a process on a read-only root cannot do that for the next one."""

import compileall
import py_compile
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# Below site-packages.
UNUSED: dict[str, Sequence[str]] = {
    "common": (
        "**/tests",
        "**/*.a",
        "swagger_ui_bundle/vendor/**/*.map",
        "swagger_ui_bundle/vendor/**/swagger-ui-es-bundle*.js",
        "swagger_ui_bundle/vendor/**/swagger-ui-standalone-preset.js",
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
# 500 programming languages, none of which we print.
NOT_COMPILED = re.compile(r"/pygments/")


def pack(folder: Path, kinds: Sequence[str]) -> None:
    for packages in list(folder.glob("lib/python3*/site-packages")):
        for pattern in (pattern for kind in kinds for pattern in UNUSED[kind]):
            for path in list(packages.glob(pattern)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        # Some packages hold files of other Pythons: what cannot be compiled stays as it is, as with pip. Never compared
        # with their sources again, which no one can change, and the same bytes in each build.
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(packages, quiet=2, rx=NOT_COMPILED, invalidation_mode=mode)


if __name__ == "__main__":
    pack(Path(sys.argv[1]), sys.argv[2:])
