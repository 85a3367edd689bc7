"""Tenants, their API keys, and the question who is asking."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg.rows import DictRow

from custody.database import SEE_AS, Transaction
from custody.errors import CustodyError
from custody.ids import new_id
from custody.wire import Key, NewKey, Role, Tenant, TenantPatch

RETENTION = """
    name, ceil(extract(epoch FROM file_retention) / 86400)::int AS file_retention_days,
    ceil(extract(epoch FROM job_retention) / 86400)::int AS job_retention_days
"""


@dataclass(frozen=True)
class Principal:
    """Who sent a request."""

    key_id: UUID
    role: Role
    tenant_id: UUID
    tenant: str


async def authenticate(transaction: Transaction, secret: str) -> Principal | None:
    found = await transaction.execute("SELECT * FROM wharf.authenticate(%s)", [_fingerprint(secret)])
    row = await found.fetchone()
    if row is None:
        return None
    return Principal(row["key_id"], Role(row["role"]), row["tenant_id"], row["tenant"])


async def get_tenant(transaction: Transaction, tenant: UUID) -> Tenant:
    found = await transaction.execute(f"SELECT {RETENTION} FROM wharf.tenants WHERE id = %s", [tenant])
    return await _tenant(found)


async def change_tenant(transaction: Transaction, tenant: UUID, patch: TenantPatch) -> Tenant:
    """What the patch names."""
    changed = await transaction.execute(
        f"""
        UPDATE wharf.tenants SET
            file_retention = CASE WHEN %(files)s THEN make_interval(days => %(file_days)s) ELSE file_retention END,
            job_retention = CASE WHEN %(jobs)s THEN make_interval(days => %(job_days)s) ELSE job_retention END
        WHERE id = %(tenant)s RETURNING {RETENTION}
        """,
        {
            "tenant": tenant,
            "files": "file_retention_days" in patch.model_fields_set,
            "file_days": patch.file_retention_days,
            "jobs": "job_retention_days" in patch.model_fields_set,
            "job_days": patch.job_retention_days,
        },
    )
    return await _tenant(changed)


async def create_key(transaction: Transaction, owner: Principal, name: str, role: Role, tenant: str | None) -> NewKey:
    """A key for the owner's tenant, or for `tenant`, which is made where it is missing.

    Raises `CustodyError("forbidden")` where another tenant is named and the owner's is not the operator's."""
    async with within(transaction, owner, tenant) as tenant_id:
        return await _add_key(transaction, tenant_id, tenant or owner.tenant, name, role)


async def list_keys(transaction: Transaction, owner: Principal) -> list[Key]:
    return await _keys(transaction, "k.tenant_id = %s", owner.tenant_id)


async def get_key(transaction: Transaction, owner: Principal, key_id: UUID, tenant: str | None) -> Key:
    """A key that `create_key` made with the same owner and tenant."""
    async with within(transaction, owner, tenant):
        (key,) = await _keys(transaction, "k.id = %s", key_id)
    return key


async def revoke_key(transaction: Transaction, owner: Principal, key_id: UUID) -> bool:
    """True where the key is revoked now, also if it was before."""
    changed = await transaction.execute(
        "UPDATE wharf.api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = %s AND tenant_id = %s",
        [key_id, owner.tenant_id],
    )
    return changed.rowcount == 1


@asynccontextmanager
async def operators_only(deed: str) -> AsyncIterator[None]:
    """Around a function that the database keeps for the operator's tenant; `deed` is what it does.

    Raises `CustodyError("forbidden")` where the transaction is another tenant's."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege:
        raise _not_the_operators(deed) from None


async def require_operator(transaction: Transaction, tenant: UUID, deed: str) -> None:
    """Before `deed`, which no function of the database guards.

    Raises `CustodyError("forbidden")` where the tenant is not the operator's."""
    found = await transaction.execute("SELECT 1 FROM wharf.tenants WHERE id = %s AND operator", [tenant])
    if await found.fetchone() is None:
        raise _not_the_operators(deed)


def _not_the_operators(deed: str) -> CustodyError:
    return CustodyError("forbidden", f"Only an admin of the operator's tenant {deed}.")


async def first_key(transaction: Transaction, tenant: str) -> NewKey:
    """An admin's key of the operator's tenant, for whoever holds the owner's role: the way in."""
    return await _add_key(transaction, await _operators_tenant(transaction, tenant), tenant, "first key", Role.ADMIN)


async def admit_key(transaction: Transaction, tenant: str, secret: str) -> None:
    """As `first_key`, with a secret that somebody else has made; admitted again it changes nothing.

    Raises `CustodyError("forbidden")` where it is another tenant's or role's, or revoked."""
    tenant_id = await _operators_tenant(transaction, tenant)
    await transaction.execute(
        """
        INSERT INTO wharf.api_keys (id, tenant_id, name, role, secret_sha256) VALUES (%s, %s, 'admitted key', %s, %s)
        ON CONFLICT (secret_sha256) DO NOTHING
        """,
        [new_id(), tenant_id, Role.ADMIN.value, _fingerprint(secret)],
    )
    known = await authenticate(transaction, secret)
    if known is None:
        raise CustodyError("forbidden", "The key was revoked. Put a new one in its place.")
    if (known.tenant_id, known.role) != (tenant_id, Role.ADMIN):
        raise CustodyError(
            "forbidden", f"The key is already one of {known.tenant}'s, with the role {known.role.value}."
        )


async def _operators_tenant(transaction: Transaction, name: str) -> UUID:
    """Made where it is missing."""
    found = await transaction.execute(
        """
        INSERT INTO wharf.tenants AS t (id, name, operator) VALUES (%s, %s, true)
        ON CONFLICT (name) DO UPDATE SET operator = true RETURNING t.id
        """,
        [new_id(), name],
    )
    row = await found.fetchone()
    assert row is not None
    return UUID(str(row["id"]))


async def _tenant(found: psycopg.AsyncCursor[DictRow]) -> Tenant:
    row = await found.fetchone()
    assert row is not None
    return Tenant(**row)


async def _keys(transaction: Transaction, condition: str, value: UUID) -> list[Key]:
    found = await transaction.execute(
        f"""
        SELECT k.id, t.name AS tenant, k.name, k.role, k.created_at, k.revoked_at
        FROM wharf.api_keys k JOIN wharf.tenants t ON t.id = k.tenant_id WHERE {condition} ORDER BY k.id
        """,
        [value],
    )
    return [Key(**row) for row in await found.fetchall()]


@asynccontextmanager
async def within(transaction: Transaction, owner: Principal, tenant: str | None) -> AsyncIterator[UUID]:
    """The transaction seen through the row-level security of `tenant`, the owner's where None; gives its id."""
    if tenant is None or tenant == owner.tenant:
        yield owner.tenant_id
        return
    tenant_id = await _open_tenant(transaction, tenant)
    await transaction.execute(SEE_AS, [str(tenant_id)])
    yield tenant_id
    await transaction.execute(SEE_AS, [str(owner.tenant_id)])


async def _open_tenant(transaction: Transaction, name: str) -> UUID:
    try:
        found = await transaction.execute("SELECT wharf.open_tenant(%s, %s) AS id", [name, new_id()])
    except psycopg.errors.InsufficientPrivilege:
        raise CustodyError(
            "forbidden", "Only the operator's tenant makes keys for another one. Leave `tenant` out.", field="tenant"
        ) from None
    row = await found.fetchone()
    assert row is not None
    tenant_id: UUID = row["id"]
    return tenant_id


async def _add_key(transaction: Transaction, tenant_id: UUID, tenant: str, name: str, role: Role) -> NewKey:
    secret = f"wharf_{secrets.token_urlsafe(32)}"
    key_id = new_id()
    found = await transaction.execute(
        """
        INSERT INTO wharf.api_keys (id, tenant_id, name, role, secret_sha256) VALUES (%s, %s, %s, %s, %s)
        RETURNING created_at
        """,
        [key_id, tenant_id, name, role.value, _fingerprint(secret)],
    )
    row = await found.fetchone()
    assert row is not None
    return NewKey(
        id=key_id, tenant=tenant, name=name, role=role, created_at=row["created_at"], revoked_at=None, secret=secret
    )


def _fingerprint(secret: str) -> bytes:
    # 256 random bits need no salt and no slow hash.
    return hashlib.sha256(secret.encode()).digest()
