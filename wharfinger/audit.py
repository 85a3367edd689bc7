"""`client.audit`: receipts of who did and read what. For admins."""

from collections.abc import Iterator
from datetime import datetime
from uuid import UUID

from custody.wire import Receipt, ReceiptPage
from wharfinger.session import Session


class Audit:
    def __init__(self, session: Session) -> None:
        self._session = session

    def list(
        self,
        *,
        object: UUID | str | None = None,
        key: UUID | str | None = None,
        action: str | None = None,
        request_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        page_size: int = 100,
    ) -> Iterator[Receipt]:
        """Receipts that fit all that is given, newest first; pages are fetched as the iteration reaches them.

        `object`: the id of a file, job or key that they name; `key`: of the key that asked; `since` is included,
        `until` is not; both have a time zone.
        """
        asked = {
            "object": object,
            "key": key,
            "action": action,
            "request_id": request_id,
            "since": None if since is None else since.isoformat(),
            "until": None if until is None else until.isoformat(),
        }
        query = {name: str(value) for name, value in asked.items() if value is not None}
        for page in self._session.pages("/v1/audit", ReceiptPage, {**query, "limit": page_size}):
            yield from page.items
