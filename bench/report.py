"""Results as a table for people and as JSON for whoever compares runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.rounds import Result, Spread, Standing


def table(result: Result, things: str) -> str:
    """Markdown: medians, with the least and the most of the rounds where a decision hangs on it."""
    standings = [result.limit, *result.contenders]
    figures = list(dict.fromkeys(figure for standing in standings for figure in standing.figures))
    rows = [["", f"{things}/s", "of the limit", *figures]]
    for standing in standings:
        medians = [_number(standing.figures[name].median) if name in standing.figures else "" for name in figures]
        judged = "limit" if standing.ratio is None else _spread(standing.ratio)
        rows.append([standing.name, _spread(standing.per_second), judged, *medians])
    left_out = [f"\nLeft out: {name}. {why}" for name, why in result.left_out.items()]
    return "\n".join([_markdown(rows), *left_out])


def as_json(result: Result) -> dict[str, Any]:
    return {
        "limit": _standing_json(result.limit),
        "contenders": [_standing_json(standing) for standing in result.contenders],
        "left_out": dict(result.left_out),
    }


def _standing_json(standing: Standing) -> dict[str, Any]:
    ratio: Mapping[str, Any] = {} if standing.ratio is None else {"ratio": _spread_json(standing.ratio)}
    figures = {name: _spread_json(spread) for name, spread in standing.figures.items()}
    return {"name": standing.name, "per_second": _spread_json(standing.per_second), **ratio, "figures": figures}


def _spread_json(spread: Spread) -> dict[str, Any]:
    rounded = [round(value, 4) for value in spread.values]
    return {
        "median": round(spread.median, 4),
        "least": round(spread.least, 4),
        "most": round(spread.most, 4),
        "rounds": rounded,
    }


def _spread(spread: Spread) -> str:
    return f"{_number(spread.median)} ({_number(spread.least)} to {_number(spread.most)})"


def _number(value: float) -> str:
    """Three digits that count; more would be noise."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
