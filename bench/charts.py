"""`python -m bench.charts FILE.json`: a picture of a scenario's table beside it, as FILE.png. In an environment of its
own, for the product needs no matplotlib."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

ALL = "CPU ms"
COLOURS = {
    "slots ms": "#4c78a8",
    "worker ms": "#72b7b2",
    "broker ms": "#f58518",
    "relay ms": "#eeca3b",
    "Postgres ms": "#54a24b",
    "RabbitMQ ms": "#e45756",
    "peer ms": "#b279a2",
    "nginx ms": "#9d755d",
}
REST = "#bab0ac"


def main() -> None:
    mpl.use("agg")
    source = Path(sys.argv[1])
    document = json.loads(source.read_text())
    standings = [document["limit"], *document["contenders"]]
    costed = [standing for standing in standings if ALL in standing["figures"]]
    figure, axes = pyplot.subplots(
        1, 2 if costed else 1, figsize=(13 if costed else 7, 1.6 + 0.32 * len(standings)), squeeze=False, sharey=True
    )
    _rates(axes[0][0], standings, document["things"])
    if costed:
        _cpu(axes[0][1], standings, document["things"])
    machine = document["machine"]
    figure.suptitle(document["title"], fontsize=10)
    figure.text(
        0.99,
        0.01,
        f"medians of {document['rounds']} rounds; {machine['cores']} cores, {machine['cpu']}; "
        f"{machine['taken_at'][:10]}, commit {(machine['commit'] or 'unknown')[:10]}",
        ha="right",
        fontsize=6,
        color="#666666",
    )
    figure.tight_layout()
    figure.savefig(source.with_suffix(".png"), dpi=130, bbox_inches="tight")


def _rates(axes: Any, standings: list[dict[str, Any]], things: str) -> None:
    """Bars: the median; whiskers: the least and the most; and how much of the limit that is."""
    names = [standing["name"] for standing in standings]
    rates = [standing["per_second"] for standing in standings]
    whiskers = [[rate["median"] - rate["least"] for rate in rates], [rate["most"] - rate["median"] for rate in rates]]
    colours = ["#333333" if "ratio" not in standing else "#4c78a8" for standing in standings]
    axes.barh(names, [rate["median"] for rate in rates], xerr=whiskers, color=colours, ecolor="#999999", capsize=2)
    for place, standing in enumerate(standings):
        told = f"{standing['ratio']['median']:.2f}" if "ratio" in standing else "limit"
        axes.text(standing["per_second"]["most"], place, f"  {told}", va="center", fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"{things}/s, and the share of the limit", fontsize=8)
    axes.tick_params(labelsize=8)


def _cpu(axes: Any, standings: list[dict[str, Any]], things: str) -> None:
    """Each role's part of what one thing costs; most limits have no roles."""
    roles = list(dict.fromkeys(name for each in standings for name in each["figures"] if name in COLOURS))
    starts = [0.0] * len(standings)
    for role in roles:
        widths = [standing["figures"].get(role, {"median": 0})["median"] for standing in standings]
        axes.barh(range(len(standings)), widths, left=starts, color=COLOURS[role], label=role.removesuffix(" ms"))
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    rest = [
        max(0.0, standing["figures"].get(ALL, {"median": 0})["median"] - start)
        for standing, start in zip(standings, starts, strict=True)
    ]
    axes.barh(range(len(standings)), rest, left=starts, color=REST, label="not told apart")
    axes.set_xlabel(f"CPU ms of one of the {things}, by role", fontsize=8)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.tick_params(labelsize=8)


if __name__ == "__main__":
    main()
