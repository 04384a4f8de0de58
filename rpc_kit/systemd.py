"""What systemd is told about a service; without systemd nothing happens."""

import logging
import os
import threading
from collections.abc import Callable

import sdnotify

logger = logging.getLogger(__name__)


class Notifier:
    """Tells systemd that the service is ready, healthy and stopping (sd_notify).

    Parameters
    ----------
    healthy
        Asked before each feeding of the watchdog; a service that says False for too long is restarted by systemd.
    """

    def __init__(self, healthy: Callable[[], bool]) -> None:
        self._healthy = healthy
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        self._stopped = threading.Event()
        self._feeder: threading.Thread | None = None

    def ready(self) -> None:
        """READY=1, and from now on the watchdog is fed if the unit has one (WatchdogSec)."""
        self._tell("READY=1")
        interval = watchdog_interval()
        if self._notifier is not None and interval is not None:
            self._feeder = threading.Thread(target=self._feed, args=(interval / 2,), name="rpc-watchdog", daemon=True)
            self._feeder.start()

    def stopping(self) -> None:
        """STOPPING=1; idempotent."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._tell("STOPPING=1")
        if self._feeder is not None:
            self._feeder.join()
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    def _feed(self, every: float) -> None:
        while not self._stopped.is_set():
            if self._healthy():
                self._tell("WATCHDOG=1")
            self._stopped.wait(every)

    def _tell(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)


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
