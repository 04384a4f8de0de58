"""What a client counts."""

import threading


class ClientStats:
    """Which path calls and events took."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def note(self, member: str, path: str) -> None:
        """Count a call or an event."""
        key = member, path
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    @property
    def paths(self) -> dict[str, dict[str, int]]:
        """Name of a method, property or signal to path to count."""
        found: dict[str, dict[str, int]] = {}
        with self._lock:
            for (member, path), count in self._counts.items():
                found.setdefault(member, {})[path] = count
        return found

    def copy(self) -> "ClientStats":
        """As it is now."""
        made = ClientStats()
        with self._lock:
            made._counts = dict(self._counts)
        return made

    def __repr__(self) -> str:
        return f"ClientStats({self.paths})"
