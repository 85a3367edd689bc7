"""Expand, then contract: what a migration may do to tables that the release before is at work on."""

import re
from pathlib import Path

import pytest

from broker.maintenance.migrate.migration import Migration
from custody.database import NEEDED_MIGRATION

ROOT = Path(__file__).parents[2]
MIGRATIONS = [
    Migration(int(path.stem.partition("_")[0]), path.stem, path.read_text())
    for path in sorted((ROOT / "schema" / "migrations").glob("*.sql"))
]
OLDER_THAN_THE_RULES = 5

CONTRACT = re.compile(r"(?:--[^\n]*\n)*?-- contract: [^\n]*\d+\.\d+\.\d+")
"""Lets a migration through, and names the first version whose processes do without what it takes away."""

AGAIN = (
    r"CREATE (UNIQUE )?INDEX CONCURRENTLY IF NOT EXISTS \w+ ON",
    r"DROP INDEX CONCURRENTLY IF EXISTS wharf\.\w+$",
    r"ALTER TABLE wharf\.\w+ VALIDATE CONSTRAINT \w+$",
    r"CREATE OR REPLACE FUNCTION\b",
    r"REVOKE ALL ON FUNCTION wharf\.\w+ FROM PUBLIC$",
    r"GRANT (EXECUTE|UPDATE \(\w+\)) ON\b",
)
"""The statements that need no transaction and may be done twice."""

STATEMENTS = {
    r"DROP (TABLE|VIEW|FUNCTION|SCHEMA|TYPE|SEQUENCE|INDEX)\b": "processes of the release before use it",
    r"REVOKE (?!.* FROM PUBLIC$)": "processes of the release before need it",
    r"(TRUNCATE|CLUSTER|VACUUM|REINDEX|LOCK|DO)\b": "locks, or hides what it locks",
    r"ALTER \w+ [\w.]+ RENAME\b": "processes of the release before know the old name",
    r"ALTER (TYPE|VIEW|FUNCTION|SEQUENCE)\b": "processes of the release before know it as it was",
}
ON_TABLES = {
    r"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)": "keeps writers waiting while it reads the table: CONCURRENTLY",
    r"(UPDATE|DELETE FROM)\b": "locks every row that it touches: fill in batches, from a process",
}
ACTIONS = {
    r"DROP (?!CONSTRAINT\b)": "processes of the release before use it",
    r"RENAME\b": "processes of the release before know the old name",
    r"ALTER (COLUMN )?\w+ (SET DATA )?TYPE\b": "writes the table anew",
    r"ALTER (COLUMN )?\w+ SET NOT NULL\b": "reads the table locked: a CHECK that is NOT VALID, then VALIDATE",
    r"ALTER (COLUMN )?\w+ DROP DEFAULT\b": "processes of the release before leave it out",
    r"SET (LOGGED|UNLOGGED|TABLESPACE)\b": "writes the table anew",
    r"VALIDATE\b": "reads the table locked: in a migration that is `not in a transaction`",
    r"ADD (CONSTRAINT \w+ )?(CHECK|FOREIGN KEY)\b(?!.* NOT VALID$)": "reads the table locked: NOT VALID, then VALIDATE",
    r"ADD (CONSTRAINT \w+ )?(UNIQUE|PRIMARY KEY|EXCLUDE)\b(?!.* USING INDEX )": "builds an index with the table locked",
}
COLUMNS = {
    r".*\b(CHECK|REFERENCES|UNIQUE|PRIMARY KEY)\b": "reads the table locked: a constraint of its own, NOT VALID",
    r".*\b(GENERATED|SERIAL|BIGSERIAL)\b": "writes the table anew",
    r"(?!.* DEFAULT ).* NOT NULL\b": "has no value in the rows that are there",
    r".* DEFAULT (?!NOW\(\))[\w.]+ ?\(": "a default that is called for each row writes the table anew",
}


def test_no_migration_takes_away_what_the_release_before_needs_or_locks_a_table_for_long():
    found = [
        f"{migration.name}: {offence}"
        for migration in MIGRATIONS
        if migration.version > OLDER_THAN_THE_RULES
        for offence in offences(migration.text)
    ]
    assert found == []


def test_the_version_that_processes_need_is_that_of_the_newest_migration():
    assert MIGRATIONS[-1].version == NEEDED_MIGRATION


def test_processes_name_the_columns_that_they_select():
    """PostgreSQL refuses a prepared SELECT * for ever once a migration has added a column."""
    everything = re.compile(r"SELECT \* FROM wharf\.\w+\b(?!\()|SELECT \w+\.\*|RETURNING \*", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for package in ("broker", "custody", "inference_worker")
        for path in (ROOT / package).rglob("*.py")
        for match in everything.finditer(re.sub(r"\s+", " ", path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE wharf.jobs DROP COLUMN metadata",
        "ALTER TABLE wharf.jobs ADD COLUMN fine text, DROP COLUMN metadata",
        "ALTER TABLE wharf.jobs DROP metadata",
        "ALTER TABLE wharf.jobs RENAME COLUMN metadata TO labels",
        "ALTER TABLE wharf.jobs RENAME TO work",
        "ALTER TABLE ONLY wharf.jobs ALTER total TYPE bigint",
        "ALTER TABLE IF EXISTS wharf.jobs ALTER COLUMN total SET DATA TYPE bigint",
        "ALTER TABLE wharf.jobs ALTER COLUMN done SET NOT NULL",
        "ALTER TABLE wharf.jobs ALTER COLUMN metadata DROP DEFAULT",
        "ALTER TABLE wharf.jobs ADD COLUMN more text NOT NULL",
        "ALTER TABLE wharf.jobs ADD COLUMN more uuid DEFAULT gen_random_uuid()",
        "ALTER TABLE wharf.jobs ADD more timestamptz NOT NULL DEFAULT clock_timestamp()",
        "ALTER TABLE wharf.jobs ADD COLUMN more text CHECK (length(more) < 9)",
        "ALTER TABLE wharf.jobs ADD COLUMN more uuid REFERENCES wharf.tenants (id)",
        "ALTER TABLE wharf.jobs ADD COLUMN more integer GENERATED ALWAYS AS (total + 1) STORED",
        "ALTER TABLE wharf.jobs ADD CHECK (total < 9)",
        "ALTER TABLE wharf.jobs ADD CONSTRAINT few CHECK (total < 9)",
        "ALTER TABLE wharf.jobs ADD CONSTRAINT once UNIQUE (model)",
        "ALTER TABLE wharf.jobs ADD FOREIGN KEY (tenant_id) REFERENCES wharf.tenants (id)",
        "ALTER TABLE wharf.jobs VALIDATE CONSTRAINT few",
        "ALTER TABLE wharf.jobs SET UNLOGGED",
        "CREATE INDEX jobs_by_model ON wharf.jobs (model)",
        "create unique index on wharf.jobs (model)",
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_by_model ON wharf.jobs (model)",
        "DROP INDEX wharf.jobs_open",
        "DROP TABLE wharf.pools",
        "DROP FUNCTION wharf.hold_blobs",
        "REVOKE SELECT ON wharf.jobs FROM wharf_api",
        "UPDATE wharf.jobs SET priority = 'batch'",
        "DELETE FROM wharf.jobs",
        "TRUNCATE wharf.jobs",
        "LOCK TABLE wharf.jobs",
        "DO $$ BEGIN ALTER TABLE wharf.jobs DROP COLUMN metadata; END $$",
        "/* so */ DROP TABLE wharf.pools",
    ],
)
def test_such_a_migration_is_found_out_and_let_through_where_it_says_whose_processes_do_without(statement):
    assert offences(f"CREATE TABLE wharf.more (id uuid);\n-- A reason; with 'quotes\n{statement};\n") != []
    assert offences(f"-- contract: unused from 0.2.0\n{statement};\n") == []
    assert offences(f"-- contract: unused\n{statement};\n") != []


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TABLE wharf.more (id uuid PRIMARY KEY CHECK (true)); CREATE INDEX ON wharf.more (id);",
        "CREATE UNLOGGED TABLE wharf.more (id uuid); ALTER TABLE wharf.more ADD CHECK (true), ALTER id SET NOT NULL;",
        "ALTER TABLE wharf.jobs ADD COLUMN more text, ADD COLUMN at timestamptz NOT NULL DEFAULT now();",
        "ALTER TABLE wharf.jobs ADD COLUMN more text NOT NULL DEFAULT 'a, DROP COLUMN b';",
        "ALTER TABLE wharf.jobs ADD COLUMN more numeric(3, 1) DEFAULT 0 NOT NULL;",
        "ALTER TABLE wharf.jobs DROP CONSTRAINT few, ADD CONSTRAINT few CHECK (total IN (1, 2)) NOT VALID;",
        "ALTER TABLE wharf.jobs ENABLE ROW LEVEL SECURITY; GRANT SELECT ON wharf.jobs TO wharf_cleanup;",
        "CREATE FUNCTION wharf.more() RETURNS void LANGUAGE sql BEGIN ATOMIC UPDATE wharf.jobs SET done = 1; END;",
        "CREATE FUNCTION wharf.more() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DELETE FROM wharf.jobs; END $$;",
        "REVOKE ALL ON FUNCTION wharf.more FROM PUBLIC;",
        "-- not in a transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS jobs_by_model ON wharf.jobs (model);",
        "-- A reason.\n-- not in a transaction\nALTER TABLE wharf.jobs VALIDATE CONSTRAINT few;",
    ],
)
def test_what_only_adds_is_let_through(text):
    assert offences(text) == []


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE INDEX CONCURRENTLY jobs_by_model ON wharf.jobs (model)",
        "CREATE INDEX IF NOT EXISTS jobs_by_model ON wharf.jobs (model)",
        "ALTER TABLE wharf.jobs ADD COLUMN more text",
        "CREATE TABLE wharf.more (id uuid)",
    ],
)
def test_outside_a_transaction_is_only_what_may_be_done_twice(statement):
    assert offences(f"-- not in a transaction\n{statement};") != []


def offences(text: str) -> list[str]:
    """What the migration does that needs a contract, and why; empty where it declares one."""
    if CONTRACT.match(text):
        return []
    migration = Migration(0, "", text)
    statements = [_plain(statement) for statement in migration.statements()]
    if not migration.in_transaction:
        return [
            f"{each}: not safe to do twice" for each in statements if not any(re.match(a, each, re.I) for a in AGAIN)
        ]
    new = {
        match[1] for each in statements if (match := re.match(r"CREATE (?:UNLOGGED )?TABLE wharf\.(\w+)", each, re.I))
    }
    return [f"{each}: {reason}" for each in statements for reason in _reasons(each, new)]


def _reasons(statement: str, new: set[str]) -> list[str]:
    reasons = _matching(STATEMENTS, statement)
    if re.match(r"(CREATE|DROP) (UNIQUE )?INDEX CONCURRENTLY", statement, re.IGNORECASE):
        reasons.append("needs a migration that is `not in a transaction`")
    table = re.search(
        r"^(?:CREATE .*?\bON|UPDATE|DELETE FROM|ALTER TABLE(?: IF EXISTS)?) (?:ONLY )?wharf\.(\w+)", statement, re.I
    )
    if table is None or table[1] in new:
        return reasons
    reasons += _matching(ON_TABLES, statement)
    if statement.upper().startswith("ALTER TABLE"):
        for action in _split(statement[table.end() :].strip()):
            reasons += _matching(ACTIONS, action)
            if re.match(r"ADD (?!CONSTRAINT|CHECK|FOREIGN|UNIQUE|PRIMARY|EXCLUDE)", action, re.IGNORECASE):
                reasons += _matching(COLUMNS, action)
    return reasons


def _matching(rules: dict[str, str], text: str) -> list[str]:
    return [reason for pattern, reason in rules.items() if re.match(pattern, text, re.IGNORECASE)]


def _plain(statement: str) -> str:
    """On one line, without comments, and with nothing in quotes: no rule is about that."""
    quiet = re.sub(r"--[^\n]*|/\*.*?\*/|(\$\w*\$).*?\1", " ", statement, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"'(?:[^']|'')*'", "''", quiet)).strip()


def _split(actions: str) -> list[str]:
    """At the commas that are in no parentheses."""
    depth, found = 0, [""]
    for character in actions:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [each.strip() for each in found]
