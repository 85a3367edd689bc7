"""`client.models`: what the service can infer with."""

from collections.abc import Iterator

from custody.wire import Model, ModelList
from wharfinger.session import Session, segment


class Models:
    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> Iterator[Model]:
        yield from self._session.get("/v1/models", ModelList).items

    def get(self, name: str) -> Model:
        return self._session.get(f"/v1/models/{segment(name)}", Model)

    def retire(self, name: str, version: int | None = None) -> Model:
        """No job is accepted for this version any more, or for any where none is named; what waits still runs. For
        admins of the operator's tenant."""
        params = None if version is None else {"version": version}
        return self._session.post(f"/v1/models/{segment(name)}/retire", Model, params=params)
