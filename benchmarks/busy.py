"""How soon a server answers a ping while one of its methods runs."""

from __future__ import annotations

import time
from contextlib import closing
from statistics import median, quantiles

from benchmarks.processes import Client
from benchmarks.results import Measurement, Results
from benchmarks.session import Session
from benchmarks.systems import OURS

SLOW = 0.6
LEAD = 0.05  # the method runs when the first ping comes,
PINGING = 0.5  # and when the last one does


def ping_while_busy(session: Session) -> Results:
    rounds = Measurement(f"PING while a method of {SLOW * 1e3:.0f} ms runs", "ms")
    times: list[float] = []

    with closing(Client(OURS, session.servers[OURS].port)) as pinger:

        def sample(system: str) -> tuple[float]:
            session.clients[system].start("slow", seconds=SLOW)
            time.sleep(LEAD)
            here = [1e3 * seconds for seconds in pinger.run("ping", seconds=PINGING)]
            session.clients[system].result()
            times.extend(here)
            return (median(here),)

        session.interleave([rounds], sample, [OURS], session.effort.slow_calls)
    results = {"ping_p50": rounds}
    if len(times) > 1:
        p99 = quantiles(times, n=100, method="inclusive")[98]
        results["ping_p99"] = Measurement(f"the same, 99th percentile of {len(times)}", "ms", {OURS: [p99]})
        results["ping_max"] = Measurement("the same, maximum", "ms", {OURS: [max(times)]})
    return results
