"""Keeps devices registered: renewals, outages of registries, other addresses, the orderly end."""

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import zmq

from . import registration
from .errors import RegistryRefused
from .messages import EventType, Registration, Removal, Renewal, Renewals
from .sockets import ZmqContext, make_socket

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 0.5
"""Pause after the first vain try to reach the registry, s; it doubles up to a third of the lease."""
FIRST_RENEWAL = 5.0
"""A registry of version 1 gives 20 s to begin with: so soon comes the first renewal, s."""
SHORTEST_TIME = 0.25
"""However many registries there are, each has so long for an answer, s."""
MOST_RENEWALS = 1000
"""So many devices are renewed in one message."""


class Member:
    """A device that is to be registered, and what the registry says of it.

    Parameters
    ----------
    describe
        What the registry at that url is told; called for each renewal, as the addresses of a host change.
    lease : float
        s; renewed every third of it.
    max_missed : int or None
        After so many vain renewals in a row `lost` is called, once; None for never.
    """

    def __init__(
        self,
        describe: Callable[[str], Registration],
        lease: float,
        max_missed: int | None,
        lost: Callable[[], None],
    ) -> None:
        self.describe = describe
        self.lease = lease
        self.max_missed = max_missed
        self.lost = lost
        self.name = ""
        self.uuid = ""
        self.last_uuid = ""
        self.registry_url = ""
        self.refusal: Exception | None = None
        self.tried = threading.Event()
        self.left = threading.Event()
        self.is_leaving = False
        self.is_lost = False
        self.heard = time.monotonic()
        self.told: Registration | None = None

    def note_miss(self) -> None:
        """No registry has answered."""
        if self.max_missed is not None and time.monotonic() - self.heard > self.max_missed * self.lease / 3:
            self.max_missed, self.is_lost = None, True
            logger.error("no registry has answered for %.0f s: stopping", time.monotonic() - self.heard)
            self.lost()


def _key_of(context: ZmqContext, urls: Sequence[str]) -> tuple[int, int, tuple[str, ...]]:
    return os.getpid(), id(context), tuple(urls)


def time_for_each(registries: int) -> float:
    """How long each of so many registries has for an answer, s: of very many each has less."""
    usual = registration.REGISTRY_TIMEOUT
    return min(usual, max(3 * usual / registries, SHORTEST_TIME))


class Registrar:
    """Keeps the devices of one context registered: one thread, one message for all their renewals.

    It begins with the first device, ends with the last, and goes to the next registry when one does not answer.

    Parameters
    ----------
    urls : sequence of str
        Registries that know the same names.
    """

    _running: dict[tuple[int, int, tuple[str, ...]], "Registrar"] = {}
    # Reentrant, as a device that is collected meanwhile leaves.
    _registry_of_registrars = threading.RLock()

    def __init__(self, context: ZmqContext, urls: Sequence[str]) -> None:
        self._context = context
        # Sockets of the context itself would be closed under this thread by the end of `with zmq.Context()`.
        self._shadow: ZmqContext = zmq.Context.shadow(context)
        self._urls = list(urls)
        self._key = _key_of(context, urls)
        self._members: list[Member] = []
        self._changed = threading.Condition(self._registry_of_registrars)
        self._next = 0.0
        self._backoff = 0.0
        self._thread = threading.Thread(target=self._run, name="rpc-registrar", daemon=True)

    @classmethod
    def add(cls, context: ZmqContext, urls: Sequence[str], member: Member) -> None:
        """Register a device and keep it registered; returns after the first try.

        Raises
        ------
        RegistryRefused
            When the registry does not accept it.
        ValueError
            When nothing can connect to a url.
        """
        with cls._registry_of_registrars:
            registrar = cls._running.get(_key_of(context, urls))
            if registrar is None:
                registrar = cls(context, urls)
                registrar._thread.start()
                cls._running[registrar._key] = registrar
            registrar._members.append(member)
            registrar._changed.notify_all()
        member.tried.wait(registrar._longest_round())
        if member.refusal is not None:
            registrar.remove(member)
            raise member.refusal
        if not member.uuid:
            logger.warning("no registry answers at %s: trying on", ", ".join(urls))

    @classmethod
    def discard(cls, context: ZmqContext, urls: Sequence[str], member: Member) -> None:
        """Unregister a device; idempotent."""
        registrar = cls._running.get(_key_of(context, urls))
        if registrar is not None:
            registrar.remove(member)

    def remove(self, member: Member) -> None:
        """Unregister a device; returns when that is done, or nobody has answered in time."""
        with self._changed:
            if member not in self._members:
                return
            member.is_leaving = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            member.left.wait(self._longest_round())

    def _longest_round(self) -> float:
        """How long it takes at most until a device has its turn, and was told or not, s."""
        return 2 * len(self._urls) * time_for_each(len(self._urls)) + 1

    def _run(self) -> None:
        try:
            while members := self._wait():
                with self._context_held():
                    self._round(members)
        except zmq.ContextTerminated:
            with self._changed:
                self._end()
        except Exception:
            logger.exception("the registrar failed: no lease is renewed any more")
            with self._changed:
                self._end()

    @contextlib.contextmanager
    def _context_held(self) -> Iterator[None]:
        """See that the context exists meanwhile; raises ContextTerminated at the end if it was terminated.

        It goes when its last socket is closed, and whoever makes one after that ends the process.
        """
        try:
            held = make_socket(self._shadow, zmq.PAIR)
        except zmq.ContextTerminated:
            raise
        except zmq.ZMQError:
            yield  # no descriptors are left, for the round either
            return
        with held:
            yield
            held.getsockopt(zmq.EVENTS)

    def _wait(self) -> list[Member]:
        """The members when there is something to do; none at the end."""
        with self._changed:
            while self._members and not self._context.closed:
                if any(each.is_leaving or not each.tried.is_set() for each in self._members):
                    return list(self._members)
                pause = self._next - time.monotonic()
                if pause <= 0:
                    return list(self._members)
                self._changed.wait(pause)
            # Before the lock is let go, as a device that comes now is to get a registrar that runs.
            self._end()
        return []

    def _end(self) -> None:
        self._running.pop(self._key, None)
        for member in self._members:
            if member.uuid:
                logger.warning("%s could not be unregistered at %s", member.name, ", ".join(self._urls))
            member.tried.set()
            member.left.set()
        self._members.clear()

    def _round(self, members: list[Member]) -> None:
        for member in [each for each in members if each.is_leaving]:
            members.remove(member)
            self._leave(member)
        is_due = time.monotonic() >= self._next
        fresh = [each for each in members if not each.tried.is_set()]
        answered = self._enter_all(fresh)
        if is_due:
            known = [each for each in members if each.uuid and each not in fresh]
            answered &= self._renew(known)
            answered &= self._enter_all([each for each in members if not each.uuid and each not in fresh])
        if not members:
            return
        regular = min(each.lease for each in members) / 3
        now = time.monotonic()
        if not answered:
            pause = self._backoff = min(2 * self._backoff or FIRST_BACKOFF, regular)
            logger.warning("no registry answers at %s; next try in %.1f s", ", ".join(self._urls), pause)
        elif is_due or fresh:
            self._backoff = 0.0
            # Jitter, so that the devices of a lab do not all renew at the same moment.
            pause = regular * random.uniform(0.8, 1.0)
            pause = min(pause, FIRST_RENEWAL) if fresh else pause
        else:
            return
        # Devices that come one after the other do not put off the renewals of the others.
        self._next = now + pause if is_due else min(self._next, now + pause)

    def _enter_all(self, members: list[Member]) -> bool:
        """Register; whether a registry has answered. One device waits for it in vain, not each of them."""
        answered = True
        for member in members:
            if answered:
                answered = self._enter(member)
            else:
                member.note_miss()
            member.tried.set()
        return answered

    def _enter(self, member: Member) -> bool:
        """Register; whether a registry has answered."""
        reply = None
        try:
            for url in list(self._urls):
                told = member.describe(url)
                reply = self._ask(url, EventType.REGISTER, told)
                if reply is not None:
                    member.told = told
                    break
        except Exception as exc:
            # Also a device that cannot say where it is, which must not keep the others from being renewed.
            if member.tried.is_set():
                logger.error("%s is not registered: %s", member.name, exc)
            else:
                member.refusal = exc
            return True
        if reply is None or not reply.get("uuid"):
            member.note_miss()
            return False
        known = member.name
        member.name, member.uuid = str(reply.get("name", "")), str(reply["uuid"])
        member.last_uuid = member.uuid
        member.heard, member.registry_url = time.monotonic(), self._urls[0]
        if known not in ("", member.name):
            logger.warning("the name %s is another device's now: registered as %s at %s", known, member.name, url)
        elif known or member.tried.is_set():
            logger.info("registered as %s at %s", member.name, url)
        return True

    def _renew(self, members: list[Member]) -> bool:
        """Renew all leases; whether a registry has answered."""
        answered = True
        for start in range(0, len(members), MOST_RENEWALS):
            some = members[start : start + MOST_RENEWALS]
            unknown = self._renew_some(some)
            if unknown is None:
                answered = False
                for member in some:
                    member.note_miss()
                continue
            for member in some:
                member.heard, member.registry_url = time.monotonic(), self._urls[0]
                if member.uuid in unknown:
                    member.uuid = ""
            answered &= self._enter_all([each for each in some if each.uuid and self._has_moved(each)])
        return answered

    def _renew_some(self, members: list[Member]) -> set[str] | None:
        """The uuids that the registry does not know; None when none has answered."""
        leases = {member.uuid: member.lease for member in members}
        for url in list(self._urls):
            try:
                if len(leases) > 1:
                    reply = self._ask(url, EventType.RENEW, Renewals(leases))
                    if reply is None:
                        continue
                    unknown = reply.get("unknown")
                    return set(map(str, unknown)) if isinstance(unknown, list) else set()
            except RegistryRefused:
                pass  # one of version 1 renews one device at a time
            unknown = set()
            for uuid, lease in leases.items():
                try:
                    reply = self._ask(url, EventType.CHECK_ALIVE, Renewal(uuid, lease))
                except RegistryRefused as exc:
                    logger.error("the registry at %s refuses a renewal: %s", url, exc)
                    reply = None
                if reply is None:
                    break
                if reply.get("success") is not True:
                    unknown.add(uuid)
            else:
                return unknown
        return None

    def _has_moved(self, member: Member) -> bool:
        """Whether the device has other addresses than the registry knows."""
        try:
            now = member.describe(member.registry_url)
        except Exception as exc:
            logger.error("where %s is cannot be told: %s", member.name, exc)
            return False
        return member.told is not None and (now.addr, now.addresses) != (member.told.addr, member.told.addresses)

    def _leave(self, member: Member) -> None:
        if member.uuid:
            # All of them together have the time of one: the device is to end.
            limit = registration.REGISTRY_TIMEOUT / len(self._urls)
            for url in list(self._urls):
                try:
                    if self._ask(url, EventType.UNREGISTER, Removal(member.uuid), limit) is not None:
                        break
                except RegistryRefused as exc:
                    logger.warning("the registry at %s refuses to unregister: %s", url, exc)
            else:
                logger.warning("%s could not be unregistered at %s", member.name, ", ".join(self._urls))
        with self._changed:
            self._members.remove(member)
        member.uuid = ""
        member.left.set()

    def _ask(
        self, url: str, event: EventType, payload: msgspec.Struct, limit: float | None = None
    ) -> dict[str, Any] | None:
        """The reply of that registry, which is then the one to be asked first."""
        limit = time_for_each(len(self._urls)) if limit is None else limit
        reply = registration.exchange(self._shadow, url, event, payload, limit)
        if reply is not None and url != self._urls[0]:
            self._urls.remove(url)
            self._urls.insert(0, url)
            logger.info("the registry at %s is used from now on", url)
        return reply
