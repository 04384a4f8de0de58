"""A store that keeps nothing: for tests, and for registries that may forget."""

import threading
from collections.abc import Mapping

from ..table import Change
from .base import Apply, Store


class MemoryStore(Store):
    """Keeps nothing beyond the process."""

    def __init__(self) -> None:
        self.exclusive = threading.Lock()

    def open(self, apply: Apply) -> None:
        self._apply = apply

    def save(self, change: Change) -> None:
        self._apply(change)

    def renew(self, leases: Mapping[str, float]) -> set[str]:
        return set()

    def close(self) -> None:
        pass
