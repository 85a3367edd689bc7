"""Rates, sizes and durations as people write them."""

import re

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
BYTES = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", start=1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", start=1)},
}
NUMBER = r"(\d+(?:\.\d+)?)"


def rate(text: str) -> float:
    """A second. Raises `ValueError` with what is expected, as the others do."""
    return _read(text, rf"{NUMBER} ?/ ?([a-z]+)", {unit: 1 / seconds for unit, seconds in SECONDS.items()}, "500/s")


def size(text: str) -> float:
    """Bytes. MB are millions, MiB are 1024 x 1024."""
    return _read(text, rf"{NUMBER} ?([A-Za-z]+)", BYTES, "2MB")


def duration(text: str) -> float:
    """Seconds."""
    return _read(text, rf"{NUMBER} ?([a-z]+)", SECONDS, "30d")


def _read(text: str, pattern: str, units: dict[str, float] | dict[str, int], example: str) -> float:
    found = re.fullmatch(pattern, text.strip(), re.ASCII)
    if not found:
        raise ValueError(f"{text!r} is not understood: a number and a unit are needed, as in {example}")
    if found[2] not in units:
        raise ValueError(f"{text!r} has an unknown unit, {found[2]}: use one of {', '.join(units)}, as in {example}")
    value = float(found[1]) * units[found[2]]
    if not 0 < value < 1e24:
        raise ValueError(f"{text!r} is no amount to plan for: it has to be more than 0, as in {example}")
    return value


def shown_size(count: float) -> str:
    """In the largest unit of 1000s that it has one of, with three digits."""
    unit = next((each for each in ("PB", "TB", "GB", "MB", "kB") if count >= BYTES[each]), "B")
    return f"{count / BYTES[unit]:.3g} {unit}" if count < 1000 * BYTES["PB"] else f"{count / BYTES['PB']:,.0f} PB"
