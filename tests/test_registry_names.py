"""The registry's search for a free name."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from registry.table import Change, Table
from rpc_kit.messages import Registration
from tests.helpers import FakeClock

NAMES = st.sampled_from(["", "a", "a-0", "a-1", "a-01", "a-1-1", "a-", "-1", "a-²"])
STEPS = st.lists(
    st.tuples(st.just("register"), NAMES, st.booleans())
    | st.tuples(st.just("restart"), NAMES, st.integers(0, 30))
    | st.tuples(st.just("plan"), NAMES, st.integers(0, 30))
    | st.tuples(st.just("unregister"), st.just(""), st.integers(0, 30)),
    max_size=60,
)


def naive(taken: set[str], device_type: str, name: str) -> str:
    """The rule: the first free one of ``name``, ``name-1``, ``name-2`` …; without a name of ``type-0``, ``type-1`` …"""
    base, candidate, number = name or device_type, name or f"{device_type}-0", 0
    while candidate in taken:
        number += 1
        candidate = f"{base}-{number}"
    return candidate


def plan(table: Table, address: str, name: str, overwrite: bool = False) -> Any:
    return table.plan(Registration("a", address, name, overwrite), 0.0)


CROWD = [("register", name, False) for name in ["a"] * 4 + [""] * 3]


@given(STEPS)
@settings(derandomize=True, deadline=None, max_examples=500)
def test_lowest_free_name(steps: list[tuple[str, str, Any]]) -> None:
    """After any registrations, restarts, vain plans and removals a device gets the lowest name that is free."""
    table = Table(FakeClock())
    for number, (step, name, detail) in enumerate(CROWD + steps):
        entries = table.entries()
        if step != "register" and not entries:
            continue
        if step == "unregister":
            table.apply(Change((entries[detail % len(entries)],)))
            continue
        overwrite = step == "register" and detail
        address = f"tcp://h:{number}" if step == "register" else entries[detail % len(entries)].address
        left = [each.name for each in entries if each.address != address and not (overwrite and each.name == name)]
        change = plan(table, address, name, overwrite)
        assert naive({*left}, "a", name) == change.added.name
        if step != "plan":
            table.apply(change)


class CountingDict(dict[str, Any]):
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
        change = plan(table, f"tcp://h:{number}", "left")
        table.apply(change)

    assert "left-999" == change.added.name
    assert names.looks <= 4000


def test_search_is_short_after_restarts() -> None:
    """A crowd that registers again, each at its address, finds its names again with a few looks."""
    table = Table(FakeClock())
    names = table._by_name = CountingDict()
    for _ in range(2):
        for number in range(1000):
            table.apply(plan(table, f"tcp://h:{number}", "left"))

    assert [f"left-{number}" if number else "left" for number in range(1000)] == [each.name for each in table.entries()]
    assert names.looks <= 8000
