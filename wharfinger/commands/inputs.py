"""From the paths of a command line to the files that are sent."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import typer

# What a folder is searched for; a file that is named itself is sent whatever its name.
PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True)
class Input:
    """`shown`: how the user knows it; `path`: where its bytes are; `size`: how many."""

    shown: str
    path: Path
    size: int


def gather(paths: Sequence[Path], stack: ExitStack) -> list[Input]:
    """The files among `paths`, the pictures in its folders, and `-` for what comes from stdin; pipes are copied to
    files that live as long as `stack`. Raises a usage error for a path that cannot be read, and for a folder without
    pictures."""
    found: list[Input] = []
    for path in paths:
        try:
            if str(path) == "-":
                found.append(_copied("stdin", sys.stdin.buffer, stack))
            elif path.is_dir():
                found.extend(_in_folder(path))
            elif path.is_fifo():
                with path.open("rb") as pipe:
                    found.append(_copied(str(path), pipe, stack))
            else:
                found.append(_named(path))
        except OSError as error:
            raise typer.BadParameter(f"cannot read {path}: {error.strerror}") from error
    return found


def _in_folder(folder: Path) -> list[Input]:
    pictures = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not pictures:
        raise typer.BadParameter(f"the folder {folder} holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))})")
    return [_named(path) for path in pictures]


def _named(path: Path) -> Input:
    return Input(str(path), path, path.stat().st_size)


def _copied(shown: str, pipe: BinaryIO, stack: ExitStack) -> Input:
    """A pipe can be read once, but its bytes are needed for the hash, for sending and for drawing."""
    copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wharf-"))) / Path(shown).name
    with copy.open("wb") as file:
        shutil.copyfileobj(pipe, file)
    return Input(shown, copy, copy.stat().st_size)
