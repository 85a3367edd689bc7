"""`client.files`: bytes in the service's custody."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from itertools import chain
from typing import Any, BinaryIO
from uuid import UUID, uuid4

from custody.wire import File, FileList, FilePage, PurgeReceipt
from wharfinger.errors import FileChangedError, NotFoundError
from wharfinger.session import Session, segment
from wharfinger.source import Picture, Report, Source, source_of


class Files:
    def __init__(self, session: Session) -> None:
        self._session = session

    def upload(
        self,
        picture: Picture,
        *,
        filename: str | None = None,
        expires_in: float | None = None,
        progress: Report | None = None,
    ) -> File:
        """Put a file into custody, streamed from disk. Bytes that the tenant holds already are not sent again.
        `expires_in`: seconds for which it is kept; otherwise as long as the tenant keeps files.

        Raises OSError where a path cannot be read, FileChangedError where it changes meanwhile, and InvalidRequestError
        for what the service does not accept.
        """
        return self.upload_source(source_of(picture, filename), expires_in=expires_in, progress=progress)

    def upload_source(self, source: Source, *, expires_in: float | None = None, progress: Report | None = None) -> File:
        """`upload` for what has been opened already."""
        digest = source.sha256()
        kept = {} if expires_in is None else {"expires_in": expires_in}
        if self.holds(digest):
            with suppress(NotFoundError):  # Held a moment ago, and deleted since.
                named = {"filename": source.filename, **kept}
                file = self._session.post(f"/v1/files/sha256:{digest}", File, params=named)
                if progress is not None:
                    progress(source.size, source.size)
                return file
        file = self._send(source, kept, progress)
        if file.sha256 != digest:
            raise FileChangedError(f"{source.filename} changed while it was sent: send it again")
        return file

    def holds(self, sha256: str) -> bool:
        """Whether the key's tenant holds these bytes."""
        answer = self._session.call("HEAD", f"/v1/files/sha256:{segment(sha256)}", also=(404,))
        return answer.status_code != 404

    def list(self, *, page_size: int = 100) -> Iterator[File]:
        """All files, newest first; pages are fetched as the iteration reaches them."""
        for page in self._session.pages("/v1/files", FilePage, {"limit": page_size}):
            yield from page.items

    def get(self, file_id: UUID | str) -> File:
        return self._session.get(f"/v1/files/{segment(file_id)}", File)

    def download(self, file_id: UUID | str, target: BinaryIO, *, progress: Report | None = None) -> File:
        """Write a file's bytes to `target`. Raises FileChangedError where they do not have the file's sha256."""
        file = self.get(file_id)
        digest = hashlib.sha256()
        received = 0
        with self._session.stream(f"/v1/files/{segment(file_id)}/content") as response:
            for chunk in response.iter_bytes():
                target.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                if progress is not None:
                    progress(received, file.size)
        if digest.hexdigest() != file.sha256:
            raise FileChangedError(f"the bytes of file {file_id} arrived damaged: get it again")
        return file

    def delete(self, file_id: UUID | str) -> None:
        self._session.call("DELETE", f"/v1/files/{segment(file_id)}")

    def pin(self, file_id: UUID | str) -> File:
        """Keep a file until it is unpinned."""
        return self._change(file_id, pinned=True)

    def unpin(self, file_id: UUID | str) -> File:
        """Keep a file until its `expires_at`; where that has passed, from now on as long as a new one."""
        return self._change(file_id, pinned=False)

    def expire(self, file_id: UUID | str, at: datetime | None = None) -> File:
        """Keep a file until then; None: from now on as long as a new one. Raises ValueError for a time without an
        offset."""
        if at is not None and at.utcoffset() is None:
            raise ValueError("`at` needs an offset: datetime.now(UTC) + timedelta(days=7), say")
        return self._change(file_id, expires_at=None if at is None else at.isoformat())

    def purge(self, file_id: UUID | str) -> PurgeReceipt:
        """Take a picture back for good: all that the tenant has of this file's bytes goes, the other files of the same
        bytes, the results of jobs on them and their filenames, and what has not ended is cancelled. Purged again, it
        gives the same receipt. `file_id` may be `sha256:HEX`, for results whose files are gone."""
        digest = str(file_id).removeprefix("sha256:")
        name = segment(file_id) if digest == str(file_id) else f"sha256:{segment(digest)}"
        return self._session.delete(f"/v1/files/{name}", PurgeReceipt, params={"purge": "true"})

    def _change(self, file_id: UUID | str, **changes: Any) -> File:
        return self._session.patch(f"/v1/files/{segment(file_id)}", File, changes)

    def _send(self, source: Source, params: dict[str, float], progress: Report | None) -> File:
        boundary = uuid4().hex
        head = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="file"; filename="{_escaped(source.filename)}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + source.size + len(tail)),
        }

        def body(_: ExitStack) -> dict[str, Any]:
            return {"content": chain([head], source.chunks(progress), [tail])}

        return self._session.post("/v1/files", FileList, body, headers=headers, params=params).items[0]


def _escaped(filename: str) -> str:
    """As HTML says for names in multipart/form-data: UTF-8 as it is, three characters escaped."""
    return filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
