"""What systemd is told about a service; without systemd nothing happens."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable

import sdnotify

logger = logging.getLogger(__name__)

STATUS_PAUSE = 2.0
"""Least time between two status texts, s."""
LONGEST_STATUS = 200
"""Characters of a status text."""


class Notifier:
    """Tells systemd that the service is ready, healthy and stopping (sd_notify).

    Parameters
    ----------
    healthy
        Asked before each feeding of the watchdog; a service that says False for too long is restarted by systemd.
    status
        What the service does, in a few words, for ``systemctl status``; asked every 2 s, and sent when it has changed.
    """

    def __init__(self, healthy: Callable[[], bool], status: Callable[[], str] = lambda: "") -> None:
        self._healthy = healthy
        self._status = status
        self._told = ""
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._stopped = threading.Event()
        self._feeder: threading.Thread | None = None

    def ready(self) -> None:
        """READY=1; from now on the status is told, and the watchdog is fed if the unit has one (WatchdogSec)."""
        if self._notifier is None:
            return
        self._told = self._status_text()
        self._tell("READY=1", *([f"STATUS={self._told}"] if self._told else []))
        interval = watchdog_interval()
        every = math.inf if interval is None else interval / 2
        self._feeder = threading.Thread(target=self._feed, args=(every,), name="rpc-watchdog", daemon=True)
        self._feeder.start()

    def stopping(self) -> None:
        """STOPPING=1; idempotent."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._feeder is not None:
            self._feeder.join(STATUS_PAUSE)  # first, so that no other status follows
        self._tell("STOPPING=1", "STATUS=stopping")
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    def _feed(self, every: float) -> None:
        now = time.monotonic()
        feed_at, status_at = (math.inf if every == math.inf else now), now + STATUS_PAUSE
        while not self._stopped.is_set():
            now = time.monotonic()
            if now >= feed_at:
                feed_at = now + every
                if self._healthy():
                    self._tell("WATCHDOG=1")
            if now >= status_at:
                status_at = now + STATUS_PAUSE
                self._tell_status()
            self._stopped.wait(min(feed_at, status_at) - time.monotonic())

    def _tell_status(self) -> None:
        text = self._status_text()
        if text != self._told:
            self._told = text
            self._tell(f"STATUS={text}")

    def _status_text(self) -> str:
        try:
            text = " ".join(self._status().split())
        except Exception as exc:
            # Not passed on: the same thread feeds the watchdog.
            text = f"no status: {exc!r}"
        return "".join(filter(str.isprintable, text))[:LONGEST_STATUS]

    def _tell(self, *lines: str) -> None:
        if self._notifier is not None:
            # sdnotify encodes as Latin-1, systemd decodes UTF-8.
            self._notifier.notify("\n".join(lines).encode().decode("latin-1"))


def watchdog_interval() -> float | None:
    """WatchdogSec of the unit in seconds; None when there is none for this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = os.environ.get("WATCHDOG_USEC", "")
    try:
        interval = int(text) / 1e6
    except ValueError:
        if text:
            logger.warning("WATCHDOG_USEC is no number: %r", text)
        return None
    return interval if interval > 0 else None
