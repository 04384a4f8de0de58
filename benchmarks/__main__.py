"""Measure, print the tables, write ``benchmarks/results/latest.json`` and, if asked, the chart."""

from __future__ import annotations

import argparse
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import busy, calls, chart, heartbeat, images, registrations, report, signals, startup, streams
from benchmarks.results import Results
from benchmarks.session import FULL, QUICK, Session
from benchmarks.systems import SYSTEMS, missing

LATEST = Path(__file__).parent / "results" / "latest.json"
STEPS = (
    startup.import_time,
    startup.memory,
    calls.echo_pinned,
    calls.echo_free,
    calls.first_call,
    calls.many_clients,
    calls.many_threads,
    busy.ping_while_busy,
    signals.signals,
    signals.signals_to_many,
    registrations.registrations,
    heartbeat.heartbeat,
    images.images,
    images.camera,
    images.thresholds,
    streams.streams,
    streams.growth,
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less than a minute, less exact")
    parser.add_argument("--chart", type=Path, metavar="PNG", help="draw the chart into this file")
    options = parser.parse_args()
    # Ended from outside as by Ctrl-C: through the stack that ends the processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    notes = [
        f"{name} is left out: pip install {' '.join(missing(name))}" for name in SYSTEMS if missing(name)
    ]
    results: Results = {}
    with ExitStack() as stack:
        session = Session(
            QUICK if options.quick else FULL, [name for name in SYSTEMS if not missing(name)], stack
        )
        for index, step in enumerate(STEPS, 1):
            session.step = f"{index}/{len(STEPS)}"
            results |= step(session)
    notes += session.notes
    for measurement in results.values():
        print(*report.table(measurement), sep="\n")
    print(*report.verdicts(results), sep="\n")
    for note in notes:
        print(note)
    report.write_json(LATEST, options.quick, results, notes)
    if options.chart:
        chart.draw(results, options.chart)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
