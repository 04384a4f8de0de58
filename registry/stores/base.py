"""What a store is: it keeps the entries of a registry beyond its process."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar

from rpc_kit.errors import StoreError

from ..table import Change

Apply = Callable[[Change], None]


class Conflict(StoreError):
    """Somebody else has changed what a change was planned on; the table knows it by now: plan again."""


class Store(ABC):
    """Keeps the entries of a registry beyond its process.

    Attributes
    ----------
    is_remote : bool
        Whether saving may take long, as somebody else is asked over a network: it is then done by workers, several at
        a time.
    exclusive : context manager
        Held while a change is planned and saved.
    """

    is_remote: ClassVar[bool] = False
    exclusive: AbstractContextManager[object]

    def __str__(self) -> str:
        return type(self).__name__.removesuffix("Store").lower()

    @abstractmethod
    def open(self, apply: Apply) -> None:
        """Hand all that is kept to `apply`, and from now on every change, once it is kept.

        Raises
        ------
        StoreError
            When it cannot be read or written, belongs to another registry, or is of a newer format.
        """

    def follow(self) -> None:  # noqa: B027 - most have nobody to follow
        """Hand from now on also to `apply` what others change."""

    @abstractmethod
    def save(self, change: Change) -> None:
        """Keep a change; it is applied when this returns.

        Raises
        ------
        StoreError
            When it cannot be kept; nothing is changed then. A remote store cannot know: what was not confirmed may be
            kept all the same, and ends with its lease.
        Conflict
            When it was planned on something that somebody else has changed meanwhile.
        """

    @abstractmethod
    def renew(self, leases: Mapping[str, float]) -> set[str]:
        """Keep new leases, uuid to seconds from now; the uuids that are unknown here.

        Raises
        ------
        StoreError
            When they cannot be kept.
        """

    def lag(self) -> float:
        """For how long what others have changed may not have been heard of, s."""
        return 0.0

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; idempotent."""
