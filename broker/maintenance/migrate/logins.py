"""Logins for the processes: roles with a password, each a member of one of the service's roles and of nothing else."""

import secrets
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow

from broker.maintenance.migrate.migration import be_the_only_one, connect, role_exists
from custody.database import ROLES
from custody.errors import StartError

PROCESS_ROLES = ROLES[1:]


async def process_urls(owner_url: str, installation: str) -> Mapping[str, str]:
    """A login for each process, by role, with a password made now. For `wharf up` on a server of yours;
    `installation` keeps two of them on one server apart."""
    logins = {role: (f"{role}_{installation}", secrets.token_urlsafe(24)) for role in PROCESS_ROLES}
    await _ensure(owner_url, logins)
    return {role: make_conninfo(owner_url, user=login, password=password) for role, (login, password) in logins.items()}


async def ensure_logins(owner_url: str, folder: Path) -> list[str]:
    """The users of the URLs in the folder's files, each named as the role that its user is to have, may log in with
    the URL's password from now on; gives their names. A role without a file gets none. An owner who may not make roles
    will do where an admin has made all of that. Raises `StartError`, with what an admin is to run."""
    logins = _read(folder)
    names = [login for login, _ in logins.values()]
    if len(set(names)) < len(names):
        raise StartError(f"--logins: two files in {folder} name the same user. Give each process one of its own.")
    try:
        await _ensure(owner_url, logins)
    except psycopg.errors.InsufficientPrivilege as error:
        if statements := await _missing(owner_url, logins):
            raise StartError(
                f"--logins: the user of WHARF_DATABASE_URL may not make logins ({error.diag.message_primary}). Have an "
                "admin of PostgreSQL run this, with the passwords of the URLs in these files, then try again:\n"
                + "\n".join(f"{statement}  -- {folder / role}" for role, statement in statements)
            ) from error
    return names


def _read(folder: Path) -> dict[str, tuple[str, str]]:
    """User and password by role."""
    logins = {}
    for role in PROCESS_ROLES:
        try:
            url = (folder / role).read_text().strip()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"--logins: {folder / role} cannot be read: {error}") from None
        try:
            parts = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            parts = {}
        if not parts.get("user") or not parts.get("password"):
            # Not with its text, which has a password.
            raise StartError(
                f"--logins: {folder / role} is no URL with a user and a password, "
                "for example postgresql://USER:SECRET@postgres:5432/wharf"
            )
        logins[role] = (str(parts["user"]), str(parts["password"]))
    if not logins:
        raise StartError(f"--logins: {folder} has none of the files {', '.join(PROCESS_ROLES)}.")
    return logins


async def _ensure(owner_url: str, logins: Mapping[str, tuple[str, str]]) -> None:
    async with await connect(owner_url) as connection:
        await be_the_only_one(connection)
        for role, (login, password) in logins.items():
            await _ensure_login(connection, role, login, password)


async def _ensure_login(connection: AsyncConnection[DictRow], role: str, login: str, password: str) -> None:
    if login != role:
        if not await role_exists(connection, login):
            await connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(login)))
        await _refuse_powerful(connection, login)
        if not await _is_member(connection, login, role):
            await connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(login)))
    # What the server is given, and may log, is not the password.
    verifier = connection.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256").decode()
    await connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(login), sql.Literal(verifier))
    )


async def _missing(owner_url: str, logins: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """What somebody else must run for each role, without its password, until all is as `_ensure` makes it."""
    found: list[tuple[str, str]] = []
    async with await connect(owner_url) as connection:
        for role, (login, password) in logins.items():
            name = sql.Identifier(login).as_string(connection)
            if not await role_exists(connection, login):
                found.append((role, f"CREATE ROLE {name} LOGIN PASSWORD '...' IN ROLE {role};"))
                continue
            await _refuse_powerful(connection, login)
            if login != role and not await _is_member(connection, login, role):
                found.append((role, f"GRANT {role} TO {name};"))
            if not await _lets_in(make_conninfo(owner_url, user=login, password=password)):
                found.append((role, f"ALTER ROLE {name} LOGIN PASSWORD '...';"))
    return found


async def _lets_in(url: str) -> bool:
    try:
        async with await AsyncConnection.connect(url, connect_timeout=10):
            return True
    except psycopg.OperationalError:
        return False


async def _is_member(connection: AsyncConnection[DictRow], login: str, role: str) -> bool:
    found = await connection.execute("SELECT pg_has_role(%s, %s, 'MEMBER') AS member", [login, role])
    row = await found.fetchone()
    assert row is not None
    return bool(row["member"])


async def _refuse_powerful(connection: AsyncConnection[DictRow], login: str) -> None:
    found = await connection.execute(
        """
        SELECT rolsuper OR rolbypassrls OR rolname = current_user
            OR pg_has_role(oid, 'wharf_owner', 'MEMBER') AS powerful
        FROM pg_roles WHERE rolname = %s
        """,
        [login],
    )
    row = await found.fetchone()
    assert row is not None
    if row["powerful"]:
        raise StartError(
            f"--logins: {login} is a superuser or the owner, who could go around the tenants' wall. Name another user."
        )
