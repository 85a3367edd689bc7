"""Engines turn pixels into detections. The protocol they share, and how one is found by its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from custody.wire import Detection, Parameters

if TYPE_CHECKING:
    from inference_worker.decode import Picture

GROUP = "wharf.engines"
"""Entry points of this group are engines; a package of yours may add some."""

EXTRAS = {"openvino": "worker", "ultralytics": "worker,ultralytics"}
"""Of this distribution: what to install for an engine of its own."""


class EngineError(Exception):
    """The engine or its model cannot be used. The message names the file, what is wrong, and what to do."""


@dataclass(frozen=True)
class ModelDescription:
    """`task`: `detect`, `segment`, `pose`, `classify` or `obb`, which tells what a detection has beside its box.
    `classes`: labels by class id; an id beyond them is labelled with its number. The input's sides are in pixels."""

    task: str
    classes: tuple[str, ...]
    input_width: int
    input_height: int


class Engine(Protocol):
    """One model, loaded. One engine is one process, one thread that calls it and one inference at a time: it need not
    be thread-safe, and several pictures at once take several processes. A picture may crash it.

    A class with a true `keeps_compiled` is given one argument more, `compiled`: a `CompiledCache`, or None."""

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        """`threads`: CPU threads for one inference; `precision`: `auto` (what is fastest here) or `f32`.

        Raises `EngineError` where the model cannot be used."""

    version: str
    """Of what computes, such as OpenVINO's: results tell it."""

    @property
    def description(self) -> ModelDescription: ...

    def warm_up(self) -> None:
        """Makes the first picture as fast as the next."""

    def infer(self, picture: "Picture", parameters: Parameters) -> list[Detection]:
        """Detections, the most confident first, in pixels of the original picture: `picture.width` by
        `picture.height`, whatever the size of its pixels."""


class BatchEngine(Engine, Protocol):
    """An engine that looks at several pictures in one inference. What is about one of them alone is done by the thread
    that asks about it, while the device has others."""

    @property
    def gains_from_batches(self) -> bool:
        """Whether two pictures together take less than one after the other, with this model on this device."""

    def prepare(self, picture: "Picture") -> Any:
        """What the device is given of a picture. Any thread calls it, several at once."""

    def infer_batch(self, prepared: Sequence[Any], parameters: Sequence[Parameters]) -> list[Any]:
        """What the device says of each, in their order. Raises `MemoryError` where it has no room for so many, and
        anything where one of them cannot be looked at: none has an answer then."""

    def detections(self, prepared: Any, answer: Any) -> list[Detection]:
        """With `prepare` and `infer_batch`, what `infer` says of the picture. Any thread calls it, several at once."""


def load_engine(name: str) -> type[Engine]:
    """The engine class called `name`: an entry point of `wharf.engines`, or an import spec `package.module:Class`.

    Raises `EngineError` where there is none."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return cast(type[Engine], getattr(import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise EngineError(f"The engine {name} cannot be imported: {error}. Check the import spec.") from error
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise EngineError(
            f"There is no engine named {name}. Installed: {', '.join(sorted(found)) or 'none'}. "
            "Take one of these, or install the package that brings it."
        )
    try:
        return cast(type[Engine], found[name].load())
    except ImportError as error:
        advice = f"Install `wharfinger[{EXTRAS[name]}]`." if name in EXTRAS else "Install what it needs."
        raise EngineError(f"The engine {name} cannot be loaded: {error}. {advice}") from error
