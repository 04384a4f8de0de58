"""The registry's search for a free name."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from registry.table import Table
from tests.helpers import FakeClock

STEPS = st.lists(
    st.tuples(st.just("register"), st.sampled_from(["", "a", "a-0", "a-1", "a-01", "a-1-1", "a-", "-1", "a-²"]))
    | st.tuples(st.just("unregister"), st.integers(0, 30)),
    max_size=60,
)


def naive(taken: set[str], device_type: str, name: str) -> str:
    """The rule: the first free one of ``name``, ``name-1``, ``name-2`` …; without a name of ``type-0``, ``type-1`` …"""
    base, candidate, number = name or device_type, name or f"{device_type}-0", 0
    while candidate in taken:
        number += 1
        candidate = f"{base}-{number}"
    return candidate


@given(STEPS)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_lowest_free_name(steps: list[tuple[str, Any]]) -> None:
    """After any registrations and removals a device gets the lowest name that is free."""
    table = Table(FakeClock())
    for number, (step, detail) in enumerate(steps):
        entries = table.entries()
        if step == "register":
            expected = naive({entry.name for entry in entries}, "a", detail)
            assert expected == table.register("a", f"tcp://h:{number}", detail)[0].name
        elif entries:
            table.unregister(entries[detail % len(entries)].uuid)


class CountingDict(dict[str, str]):
    """Counts how often somebody looks."""

    looks = 0

    def __contains__(self, key: object) -> bool:
        self.looks += 1
        return super().__contains__(key)


def test_search_is_short() -> None:
    """However many devices want the same name, each finds a free one with a few looks."""
    table = Table(FakeClock())
    names = table._by_name = CountingDict()
    for number in range(1000):
        entry, _ = table.register("camera", f"tcp://h:{number}", "left")

    assert "left-999" == entry.name
    assert names.looks <= 4000
