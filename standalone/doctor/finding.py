"""What a look at the set-up found."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`state`: ok, warning or fault. `advice`: what to do, where something is to be done."""

    subject: str
    state: str
    detail: str
    advice: str = ""
