"""What a client counts."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rpc_kit.stats import ClientStats
from tests.helpers import wait_until


def test_counts() -> None:
    """Each path of each member is counted on its own."""
    stats = ClientStats()
    assert {} == stats.paths
    for member, path in (("image", "shm"), ("image", "tcp"), ("level", "ipc"), ("image", "shm")):
        stats.note(member, path)

    assert {"image": {"shm": 2, "tcp": 1}, "level": {"ipc": 1}} == stats.paths
    assert "ClientStats({'image': {'shm': 2, 'tcp': 1}, 'level': {'ipc': 1}})" == repr(stats)


def test_copy_does_not_change() -> None:
    """A copy stays as it is, whatever is counted later and whatever is done to what it tells."""
    stats = ClientStats()
    stats.note("image", "shm")
    copy = stats.copy()
    stats.note("image", "shm")
    stats.note("level", "ipc")
    copy.paths["image"]["shm"] = 7
    copy.paths.clear()

    assert ({"image": {"shm": 1}}, {"image": {"shm": 2}, "level": {"ipc": 1}}) == (copy.paths, stats.paths)


def test_many_threads() -> None:
    """Nothing is lost between threads."""
    stats = ClientStats()

    def note(thread: int) -> None:
        for number in range(2000):
            stats.note(f"member-{number % 3}", f"path-{thread % 2}")
            stats.copy()

    with ThreadPoolExecutor(8) as pool:
        assert 8 * [None] == list(pool.map(note, range(8)))

    assert 16_000 == sum(sum(paths.values()) for paths in stats.paths.values())
    assert {8000} == {sum(paths[path] for paths in stats.paths.values()) for path in ("path-0", "path-1")}


def test_of_a_client(client: Any, device: Any) -> None:
    """Calls, properties and signals of a client are counted by the way they took; what is told is a copy."""
    heard: list[Any] = []
    client.level_changed.connect(heard.append)
    before = client.stats()
    assert 3 == client.add(1, 2)
    client.level = client.level + 1
    client.execute("add", {"args": [1]})
    wait_until(lambda: heard)

    assert {} == before.paths
    assert {"add": {"ipc": 2}, "level": {"ipc": 2}} == {name: client.stats().paths[name] for name in ("add", "level")}


def test_of_a_server(device: Any, client: Any) -> None:
    """A server tells of its shared memory once a client has asked for it, and of no streams while there are none."""
    payload, _ = client.buffer("bytes", 300_000)
    taken = device.stats()

    assert ({"shm"}, 300_000) == (taken.keys(), payload.nbytes)
    assert {"limit", "size", "slots", "held"} <= taken["shm"].keys()
    assert (1, 1) == (taken["shm"]["slots"], taken["shm"]["held"])
    assert {"buffer": {"shm": 1}} == client.stats().paths
