"""A run as a table for people."""

from statistics import median

from rich.table import Table

from tests.faults.chaos.run import TWO_AT_ONCE, Account


def table_of_faults(account: Account) -> Table:
    table = Table("fault", title="recovered: from a fault's end to the end of the first job submitted after it")
    for heading in ("count", "p50, s", "max, s"):
        table.add_column(heading, justify="right")
    for name in sorted({*account.brought, *account.recoveries} - {TWO_AT_ONCE}):
        table.add_row(name, str(account.brought[name]), *_spread(account.recoveries.get(name, [])))
    together = account.recoveries.get(TWO_AT_ONCE, [])
    table.add_row(TWO_AT_ONCE, str(len(together)), *_spread(together), end_section=True)
    everything = [seconds for recoveries in account.recoveries.values() for seconds in recoveries]
    table.add_row("all", str(account.brought.total()), *_spread(everything))
    return table


def table_of_promises(account: Account) -> Table:
    kinds = [violation.kind for violation in account.ledger.violations]
    table = Table("promises")
    counts = {
        "requests": account.ledger.requests,
        "acknowledged": account.ledger.acknowledged,
        "files": len(account.ledger.files),
        "jobs": len(account.ledger.jobs),
        "lost": kinds.count("lost"),
        "duplicated": kinds.count("duplicated"),
        "other violations": sum(kind not in ("lost", "duplicated") for kind in kinds),
    }
    table.add_column("count", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    return table


def _spread(seconds: list[float]) -> tuple[str, str]:
    return (f"{median(seconds):.2f}", f"{max(seconds):.2f}") if seconds else ("", "")
