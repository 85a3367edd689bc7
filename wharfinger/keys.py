"""`client.keys`: who may talk to the service. For admins."""

from collections.abc import Iterator
from uuid import UUID

from custody.wire import Key, KeyList, KeyRequest, NewKey, Role
from wharfinger.session import Session, json_body, segment


class Keys:
    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, name: str, role: Role | str, *, tenant: str | None = None) -> NewKey:
        """A new key; its `secret` is shown here and never again.

        Raises ValueError for a name, role or tenant that no key can have.
        """
        asked = {"name": name, "role": role, "tenant": tenant}
        request = KeyRequest.model_validate({k: v for k, v in asked.items() if v is not None})
        return self._session.post("/v1/keys", NewKey, json_body(request))

    def list(self) -> Iterator[Key]:
        yield from self._session.get("/v1/keys", KeyList).items

    def revoke(self, key_id: UUID | str) -> None:
        self._session.call("DELETE", f"/v1/keys/{segment(key_id)}")
