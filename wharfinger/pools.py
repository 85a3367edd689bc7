"""`client.pools`: what waits for each model. To pause, drain and resume is for admins of the operator's tenant."""

from collections.abc import Iterator

from custody.wire import Pool, PoolList
from wharfinger.session import Session, segment


class Pools:
    def __init__(self, session: Session) -> None:
        self._session = session

    def list(self) -> Iterator[Pool]:
        yield from self._session.get("/v1/pools", PoolList).items

    def pause(self, name: str) -> Pool:
        """Jobs are accepted, and nothing of them begins."""
        return self._session.post(f"/v1/pools/{segment(name)}/pause", Pool)

    def drain(self, name: str) -> Pool:
        """No job is accepted; what waits is worked off."""
        return self._session.post(f"/v1/pools/{segment(name)}/drain", Pool)

    def resume(self, name: str) -> Pool:
        return self._session.post(f"/v1/pools/{segment(name)}/resume", Pool)
