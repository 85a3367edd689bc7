"""`wharf plan`: prints what a load asks for, and the chart's values that give it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from math import ceil
from typing import Annotated, Any

import typer

from standalone.plan import constants, units
from standalone.plan.capacity import Load, Plan, gpu_ms
from standalone.plan.capacity import plan as planned
from wharfinger.commands.output import print_facts, print_table, table
from wharfinger.commands.output import say as tell


def _of(read: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return read(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parse


def _device(text: str) -> str:
    if text not in (known := ["cpu", *constants.GPUS]):
        raise typer.BadParameter(f"{text!r} is not known: use one of {', '.join(known)}; for another, say --model-ms")
    return text


def plan(
    rate: Annotated[
        float, typer.Option(parser=_of(units.rate), metavar="RATE", help="Pictures in the busiest hour: 500/s, 30/min")
    ],
    size: Annotated[
        float, typer.Option(parser=_of(units.size), metavar="SIZE", help="Of a picture: 200kB, 2MB, 1.5MiB")
    ],
    retention: Annotated[
        float, typer.Option(parser=_of(units.duration), metavar="TIME", help="How long files are kept: 12h, 30d")
    ],
    mean: Annotated[
        float | None,
        typer.Option(
            parser=_of(units.rate), metavar="RATE", help="Pictures on average, which fill the disks; --rate if unset"
        ),
    ] = None,
    results_kept: Annotated[
        float, typer.Option(parser=_of(units.duration), metavar="TIME", help="How long results are kept")
    ] = "90d",  # type: ignore[assignment]  # the parser is given it
    duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures whose bytes are there already")
    ] = 0.0,
    device: Annotated[str, typer.Option(parser=_device, metavar="NAME", help="cpu, t4, l4, a10 or a100")] = "cpu",
    model_ms: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Of your model: CPU ms on one core, or ms of the GPU, for a picture. YOLO11n's if unset"
        ),
    ] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Of each worker")] = 2,
    spare: Annotated[int, typer.Option(min=0, help="How many of each kind may be away at that rate")] = 1,
    queue: Annotated[bool, typer.Option("--queue/--no-queue", help="With RabbitMQ and relays, or without")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables")] = False,
) -> None:
    """Compute what a load asks for: volume, IOPS, pods, connections, and the chart's values.

    Nothing is asked and nothing is measured here: it multiplies what was measured on one
    machine, and says of each constant where it is from. Measure your model before you buy.
    """
    load = Load(
        rate,
        rate if mean is None else mean,
        size,
        retention,
        results_kept,
        duplicates,
        model_ms,
        device,
        cpus,
        spare,
        queue,
    )
    found = planned(load)
    values = chart_values(load, found)
    if as_json:
        document = {
            "load": asdict(load),
            "plan": asdict(found),
            "values": values,
            "constants": {name: asdict(each) for name, each in constants.ALL.items()},
        }
        typer.echo(json.dumps(document, indent=2))
        return
    print_facts(_facts(load, found))
    typer.echo("\nValues of the chart\n")
    typer.echo("\n".join(_yaml(values, depth=2)))
    typer.echo("\nComputed with")
    shown = table("constant", "value", "unit", "source", "what", right=["value"])
    for name, each in constants.ALL.items():
        shown.add_row(name, f"{each.value:g}", each.unit, each.source, each.where)
    print_table(shown)
    if device != "cpu":
        tell("No GPU has been measured by us: its figures are computed from assumptions. Say --model-ms once you know.")


def chart_values(load: Load, found: Plan) -> dict[str, Any]:
    """What differs from the chart's own. A pool needs its model's name added."""
    gibibytes = ceil(found.volume_bytes / (1 << 30))
    pool: dict[str, Any] = {
        "replicas": found.workers,
        "resources": {"requests": {"cpu": str(load.cpus)}, "limits": {"cpu": str(load.cpus)}},
    }
    if found.gpus:
        pool |= {"engine": "ultralytics", "gpus": found.gpus, "settings": {"SLOTS": 1}}
    return {
        "storage": {"size": f"{gibibytes}Gi"},
        "broker": {"replicas": found.brokers},
        **({"relay": {"replicas": found.relays}} if load.queue else {"queue": {"enabled": False}}),
        "poolDefaults": pool,
    }


def _yaml(values: dict[str, Any], depth: int) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield f"{'  ' * depth}{name}:"
            yield from _yaml(value, depth + 1)
        else:
            yield f"{'  ' * depth}{name}: {json.dumps(value)}"


def _facts(load: Load, found: Plan) -> list[tuple[str, object]]:
    worker = f"{found.workers}, of {load.cpus} CPUs" + (f" and a {load.device.upper()}" if found.gpus else "")
    facts: list[tuple[str, object]] = [
        ("volume", f"{units.shown_size(found.volume_bytes)}, {found.files:,.0f} files"),
        ("volume IOPS", f"{found.volume_operations:,.0f}"),
        ("volume writes", f"{units.shown_size(found.volume_write_bytes)}/s"),
        ("volume reads", f"{units.shown_size(found.volume_read_bytes)}/s"),
        ("brokers", found.brokers),
        ("relays", found.relays if load.queue else None),
        ("workers", f"{worker}; one does {found.worker_rate:,.1f}/s at most"),
        ("PostgreSQL", f"{found.database_cpus:,.1f} CPUs, {found.database_commits:,.0f} commits/s"),
        ("  its disk", f"{units.shown_size(found.database_bytes)}, and {found.database_commits:,.0f} IOPS at most"),
        ("  max_connections", found.database_connections),
    ]
    if load.queue:
        facts.append(("RabbitMQ", f"{found.queue_cpus:,.1f} CPUs a node, {found.queue_messages:,.0f} messages/s"))
        facts.append(("  its disks", f"{units.shown_size(found.queue_write_bytes)}/s together"))
    if found.gpus and load.model_ms is None:
        facts.append(("GPU", f"{gpu_ms(load.device):.2f} ms a picture, computed"))
    return facts
