"""`python -m bench.batching_chart FILE.json`: the picture of what `bench.batching` computed, as FILE.png."""

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot


def main() -> None:
    mpl.use("agg")
    source = Path(sys.argv[1])
    document = json.loads(source.read_text())
    figure, (rates, delays) = pyplot.subplots(1, 2, figsize=(13, 5))
    for place, policy in enumerate(document["policies"]):
        loads = policy["loads"]
        offered = [each["offered"] for each in loads]
        name = f"max_batch {policy['max_batch']}, max_delay_ms {policy['max_delay_ms']:g}"
        colour = f"C{place}"
        rates.plot(offered, [each["per second"] for each in loads], "o-", color=colour, markersize=3, label=name)
        delays.plot(offered, [each["p50 ms"] for each in loads], "-", color=colour, label=name)
        delays.plot(offered, [each["p95 ms"] for each in loads], "--", color=colour)
    rates.set_ylabel("answered a second")
    delays.set_ylabel("ms from decoded to answered: p50, and p95 dashed")
    delays.set_yscale("log")
    delays.set_ylim(top=1000)
    for axes in (rates, delays):
        axes.set_xlabel("pictures that come a second")
        axes.grid(alpha=0.3)
    rates.legend(fontsize=7)
    device = document["device"]
    figure.suptitle(
        f"Computed, not measured: the worker's policy on a device that takes {device['fixed ms']:g} ms a batch and "
        f"{device['each ms']:g} ms a picture",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(source.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
