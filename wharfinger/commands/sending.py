"""Many files on their way into custody: a few at a time, one a request, with one progress bar."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.progress import Progress, TaskID

from custody.wire import File
from wharfinger.client import Client
from wharfinger.commands.inputs import Input
from wharfinger.commands.output import progress_bar, say
from wharfinger.errors import ConflictError, FileChangedError, InvalidRequestError
from wharfinger.source import Report

_AT_ONCE = 4


@dataclass(frozen=True)
class Sent:
    input: Input
    file: File


def send(client: Client, inputs: Sequence[Input]) -> list[Sent]:
    """The files that are in custody now, in the order of `inputs`. One that cannot be read or that the service does not
    accept is reported on stderr and missing here. Other errors are raised, and what was not begun is left."""
    sent: list[Sent] = []
    threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="upload")
    try:
        with progress_bar() as bar:
            task = bar.add_task(f"Uploading {len(inputs)}", total=sum(each.size for each in inputs))
            uploads = [threads.submit(client.upload, each.path, progress=_advance(bar, task)) for each in inputs]
            for each, upload in zip(inputs, uploads, strict=True):
                try:
                    sent.append(Sent(each, upload.result()))
                except (InvalidRequestError, ConflictError, FileChangedError, OSError) as error:
                    say(f"{each.shown}: {error}")
    finally:
        # Not waiting: after an error or Ctrl-C the client is closed next, and that ends what is still on its way.
        threads.shutdown(wait=False, cancel_futures=True)
    return sent


def _advance(bar: Progress, task: TaskID) -> Report:
    """Adds one file's bytes to a bar for many; where the file is sent again, takes its bytes back first."""
    counted = 0

    def report(done: int, _: int) -> None:
        nonlocal counted
        bar.advance(task, done - counted)
        counted = done

    return report
