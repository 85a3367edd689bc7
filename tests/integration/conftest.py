"""The domain on a fresh installation, and two tenants who must not know of each other."""

from uuid import UUID

import pytest

from tests.support.domain import Domain


@pytest.fixture
def domain(installation, api_database, worker_database) -> Domain:
    return Domain(installation, api_database, worker_database)


@pytest.fixture
def acme(domain) -> UUID:
    return domain.add_tenant("acme")


@pytest.fixture
def globex(domain) -> UUID:
    return domain.add_tenant("globex")
