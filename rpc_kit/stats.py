"""What a client counts."""

import threading


class ClientStats:
    """Which path calls and events took.

    Attributes
    ----------
    paths : dict
        Name of a method, property or signal to path to count.
    """

    def __init__(self) -> None:
        self.paths: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()

    def note(self, member: str, path: str) -> None:
        """Count a call or an event."""
        with self._lock:
            paths = self.paths.setdefault(member, {})
            paths[path] = paths.get(path, 0) + 1

    def copy(self) -> "ClientStats":
        """As it is now."""
        made = ClientStats()
        with self._lock:
            made.paths = {member: dict(paths) for member, paths in self.paths.items()}
        return made

    def __repr__(self) -> str:
        return f"ClientStats({self.paths})"
