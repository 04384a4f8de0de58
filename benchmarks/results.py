"""Measured samples, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from benchmarks.systems import RAW

SHARE = "%"


@dataclass(slots=True)
class Measurement:
    """The samples of one quantity, per system, one per round."""

    title: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    def value(self, system: str) -> float | None:
        """Median of the rounds."""
        return median(self.samples[system]) if system in self.samples else None

    def ratio(self, system: str, other: str = RAW) -> float | None:
        """Median of the ratios within each round: what slows both down cancels out."""
        if self.unit == SHARE or system not in self.samples or other not in self.samples:
            return None
        pairs = zip(self.samples[system], self.samples[other], strict=True)
        ratios = [mine / reference for mine, reference in pairs if reference]
        return median(ratios) if ratios else None


Results = dict[str, Measurement]
