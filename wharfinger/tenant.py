"""`client.tenant`: how long the key's tenant keeps its things. For admins."""

from custody.wire import Tenant
from wharfinger.session import Session


class OwnTenant:
    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self) -> Tenant:
        return self._session.get("/v1/tenant", Tenant)

    def set_retention(self, **days: int | None) -> Tenant:
        """`file_retention_days`, for files that are uploaded from now on, and `job_retention_days`; None: as long as
        the service keeps them where nobody says otherwise. What is left out stays as it is."""
        return self._session.patch("/v1/tenant", Tenant, days)
