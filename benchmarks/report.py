"""The results as tables for the terminal and as JSON."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.results import Measurement, Results
from benchmarks.targets import TARGETS

PACKAGES = ("rpc-kit", "pyzmq", "msgspec", "numpy", "Pyro5", "rpyc", "grpcio", "zerorpc")


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(measurement: Measurement) -> Iterator[str]:
    """One measurement, a line per system."""
    yield f"\n{measurement.title} [{measurement.unit}]"
    yield f"  {'':16}{'median':>10}{'spread':>20}{'÷ raw':>10}"
    for system, samples in measurement.samples.items():
        spread = f"{number(min(samples))} … {number(max(samples))}" if len(samples) > 1 else ""
        yield (
            f"  {system:16}{number(measurement.value(system)):>10}{spread:>20}"
            f"{number(measurement.ratio(system)):>10}"
        )


def verdicts(results: Results) -> Iterator[str]:
    """The targets, a line each."""
    yield "\ntargets"
    for target in TARGETS:
        value, verdict = target.verdict(results)
        bound = f"{'≥' if target.at_least else '≤'} {target.bound:,g} {target.unit}"
        yield f"  {target.what:44}{bound:>20}{number(value):>10}  {verdict}"


def environment() -> dict[str, object]:
    """What the figures depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "time": time.time(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def write_json(path: Path, quick: bool, results: Results, notes: Sequence[str]) -> None:
    """Everything that was measured, for machines."""
    document = {
        "environment": environment(),
        "quick": quick,
        "notes": notes,
        "measurements": {
            key: {
                "title": measurement.title,
                "unit": measurement.unit,
                "systems": {
                    system: {
                        "median": measurement.value(system),
                        "ratio": measurement.ratio(system),
                        "samples": samples,
                    }
                    for system, samples in measurement.samples.items()
                },
            }
            for key, measurement in results.items()
        },
        "targets": [
            {
                "what": target.what,
                "bound": target.bound,
                "at_least": target.at_least,
                "unit": target.unit,
                "value": value,
                "verdict": verdict,
            }
            for target in TARGETS
            for value, verdict in [target.verdict(results)]
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
