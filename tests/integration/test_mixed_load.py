"""Eight client processes, of both protocol versions, and one device for twenty seconds."""

import json
from typing import Any

from tests.devices import LIMIT, InstrumentClient
from tests.helpers import wait_until

SECONDS = 20


def test_mixed_load(process: Any, spawn: Any, context: Any) -> None:
    """Mixed calls of eight processes get no wrong, lost or hung reply, and all of them get their share."""
    kinds = ["ours"] * 5 + ["plain"] * 3
    clients = [
        spawn("tests.integration.load", kind, process.line, str(seed), str(SECONDS)) for seed, kind in enumerate(kinds)
    ]
    assert ["ready"] * 8 == [client.line for client in clients]
    wait_until(lambda: all(client.process.poll() is not None for client in clients), SECONDS + LIMIT)
    results = [json.loads(client.output.read()) for client in clients]

    assert [[]] * 8 == [result["wrong"] for result in results]
    assert max(result["slowest"] for result in results) < LIMIT
    assert min(sum(result["made"].values()) for result in results) > 100
    assert all(result["made"]["events"] > 100 for result in results[:5])
    with InstrumentClient(context, process.line) as client:
        assert 3 == client.add(1, 2)
    assert process.process.poll() is None
