"""What the deployment's sensor has seen last: which version is the champion, and which is in use. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True)
class DeploymentCursor:
    """Both versions.

    Attributes:
        in_use: empty: none is.
    """

    champion: str
    in_use: str

    @property
    def waiting(self) -> bool:
        """Whether the champion is not in use."""
        return self.champion != self.in_use

    def dump(self) -> str:
        """As Dagster keeps it."""
        return f"{self.champion} {self.in_use}"

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Read it; None: the sensor has not compared anything yet."""
        champion, blank, in_use = (text or "").partition(" ")
        return cls(champion=champion, in_use=in_use) if champion and blank else None
