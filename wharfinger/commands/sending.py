"""Many files on their way into custody: a few at a time, one a request, with one progress bar."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

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


def send(client: Client, inputs: Sequence[Input], *, expires_in: float | None = None) -> list[Sent]:
    """The files that are in custody now, in the order of `inputs`. One that cannot be read or that the service does not
    accept is reported on stderr and missing here. Other errors are raised, and what was not begun is left."""
    sent: list[Sent] = []
    with progress_bar() as bar:
        task = bar.add_task(f"Uploading {len(inputs)}", total=sum(each.size for each in inputs))
        uploads = _begin(
            inputs, lambda each: client.upload(each.path, expires_in=expires_in, progress=_advance(bar, task))
        )
        try:
            for each, upload in zip(inputs, uploads, strict=True):
                try:
                    sent.append(Sent(each, upload.result()))
                except (InvalidRequestError, ConflictError, FileChangedError, OSError) as error:
                    say(f"{each.shown}: {error}")
        finally:
            for upload in uploads:
                upload.cancel()
    return sent


def _begin(inputs: Sequence[Input], work: Callable[[Input], File]) -> list[Future[File]]:
    """Their files, in time. An executor would not do: the program's end waits for its threads, and so Ctrl-C would wait
    for a server that does not answer."""
    uploads: list[Future[File]] = [Future() for _ in inputs]
    waiting: SimpleQueue[tuple[Future[File], Input]] = SimpleQueue()
    for pair in zip(uploads, inputs, strict=True):
        waiting.put(pair)

    def run() -> None:
        while True:
            try:
                upload, each = waiting.get_nowait()
            except Empty:
                return
            if upload.set_running_or_notify_cancel():
                try:
                    upload.set_result(work(each))
                except Exception as error:  # noqa: BLE001 - raised where the result is asked for
                    upload.set_exception(error)

    for number in range(min(_AT_ONCE, len(inputs))):
        Thread(target=run, name=f"upload-{number}", daemon=True).start()
    return uploads


def _advance(bar: Progress, task: TaskID) -> Report:
    """Adds one file's bytes to a bar for many; where the file is sent again, takes its bytes back first."""
    counted = 0

    def report(done: int, _: int) -> None:
        nonlocal counted
        bar.advance(task, done - counted)
        counted = done

    return report
