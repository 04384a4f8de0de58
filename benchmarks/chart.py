"""The chart of the documentation: every system as a ratio to raw pyzmq, the best one on top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Results
from benchmarks.systems import OURS, RAW


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity."""

    key: str
    title: str
    more_is_better: bool = False
    scale: str = "linear"


PANELS = (
    Panel("echo_pinned", "echo, both processes on one core: time"),
    Panel("echo_free", "echo, unpinned: time"),
    Panel("many_clients", "8 client processes: calls/s, more is better", more_is_better=True),
    Panel("image_25", "image of 24.9 MB over tcp: time, logarithmic", scale="log"),
)
COLOURS = {OURS: "tab:blue", RAW: "0.4"}


def draw(results: Results, path: Path) -> None:
    """Draw the chart into a PNG file."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    for panel, axes in zip(PANELS, figure.subplots(2, 2).flat, strict=True):
        draw_panel(axes, panel, results)
    figure.suptitle("ratio to raw pyzmq with json in the same run", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_panel(axes: Axes, panel: Panel, results: Results) -> None:
    measurement = results[panel.key]
    ratios = {system: measurement.ratio(system) for system in measurement.samples}
    known = {system: ratio for system, ratio in ratios.items() if ratio is not None}
    # Bars are drawn from below.
    names = sorted(known, key=lambda name: known[name], reverse=not panel.more_is_better)
    values = [known[name] for name in names]
    bars = axes.barh(names, values, color=[COLOURS.get(name, "0.8") for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=4)
    axes.set_xscale(panel.scale)
    axes.axvline(1.0, color="0.4", linewidth=0.8, linestyle="--", zorder=0)
    axes.margins(x=0.2)
    axes.minorticks_off()
    axes.set_xticks([])
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(panel.title, fontsize=10)
