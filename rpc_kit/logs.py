"""Logging of the service processes: set up once, in a form that the journal understands."""

import argparse
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO + 1, 5), (logging.INFO, 6))
"""From which level on a line has which priority of sd-daemon(3); below that it is 7."""


def set_up_logging(level: str = "info", filters: Sequence[str] = ()) -> None:
    """Log to standard error; for the main program of a service, not for libraries.

    Lines that go to the journal have a priority and no time, as the journal has its own; others have time, level and
    logger.

    Parameters
    ----------
    level : str, default "info"
        debug, info, warning, error or critical.
    filters : sequence of str
        Levels of single loggers and those below them, as ``rpc_kit.calls=debug``.

    Raises
    ------
    ValueError
        When a level or a filter is none; nothing has been changed.
    """
    levels = [("", _level(level)), *map(_filter, filters)]
    root = logging.getLogger()
    for former in [each for each in root.handlers if isinstance(each, _ServiceHandler)]:
        root.removeHandler(former)
    root.addHandler(_ServiceHandler(goes_to_journal()))
    for name, number in levels:
        logging.getLogger(name).setLevel(number)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-level`` and ``--log``; what they give is for `set_up_logging`."""
    parser.add_argument(
        "--log-level", type=_level_option, default="info", metavar="LEVEL", help=f"{', '.join(LEVELS)} (default: info)"
    )
    parser.add_argument(
        "--log",
        type=_filter_option,
        action="append",
        default=[],
        metavar="LOGGER=LEVEL",
        help="level of one logger, as rpc_kit.calls=debug; may be given again",
    )


def goes_to_journal() -> bool:
    """Whether standard error is connected to the journal (JOURNAL_STREAM in systemd.exec(5))."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return False  # none, closed, or replaced by something that is no file
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def discard(stream: TextIO) -> None:
    """Drop what was and will be written there, as nobody is left to read it; the interpreter would fail at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class _ServiceHandler(logging.StreamHandler[Any]):
    """Writes to standard error as long as somebody reads it."""

    def __init__(self, to_journal: bool) -> None:
        super().__init__(sys.stderr)
        plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.setFormatter(_JournalFormatter("%(name)s: %(message)s") if to_journal else plain)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            if isinstance(error, ConnectionError) or error.errno == errno.EIO:
                discard(self.stream)  # the reader of the pipe, or the terminal, does not come back
        elif not getattr(self.stream, "closed", False):
            super().handleError(record)


class _JournalFormatter(logging.Formatter):
    """Puts the priority before each line: for the journal each is an entry of its own."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).split("\n"))


def _priority(level: int) -> int:
    return next((number for lowest, number in _PRIORITIES if level >= lowest), 7)


def _level(text: str) -> int:
    number = LEVELS.get(text.lower())
    if number is None:
        raise ValueError(f"a log level is one of {', '.join(LEVELS)}, not {text!r}")
    return number


def _filter(text: str) -> tuple[str, int]:
    name, equals, level = text.partition("=")
    if not name or not equals:
        raise ValueError(f"a log filter is LOGGER=LEVEL, as rpc_kit.calls=debug, not {text!r}")
    return name, _level(level)


def _level_option(text: str) -> str:
    return _checked(_level, text)


def _filter_option(text: str) -> str:
    return _checked(_filter, text)


def _checked(parse: Callable[[str], object], text: str) -> str:
    try:
        parse(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text
