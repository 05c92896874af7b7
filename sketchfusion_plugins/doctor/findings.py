"""What an examination found, line by line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Group = Literal["packages", "extras", "combinations", "torch", "weights", "folders"]
State = Literal["ok", "note", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        group: What it is about.
        name: Package, extra, device, weights or folder.
        state: ``"ok"``; ``"note"`` for what is optional and not there; ``"warning"`` for what may
            fail; ``"broken"`` for what was asked for and does not work.
        found: What was found.
        advice: What mends it, or what it would unlock; empty where there is nothing to do.
    """

    group: Group
    name: str
    state: State
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.group not in get_args(Group) or self.state not in get_args(State):
            raise ValueError(
                f"expected a group of {get_args(Group)} and a state of {get_args(State)}, got "
                f"{self.group!r} and {self.state!r}."
            )


@dataclass(frozen=True)
class Examination:
    """All findings of an examination, in order.

    Attributes:
        findings: The lines.
    """

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """What does not work though it was asked for."""
        return tuple(finding for finding in self.findings if finding.state == "broken")

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken."""
        return not self.broken

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"healthy": self.healthy, "findings": [asdict(line) for line in self.findings]}
