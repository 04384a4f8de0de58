"""Logging of service processes: what stands on a real standard error."""

import argparse
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from rpc_kit.logs import add_log_options, goes_to_journal, set_up_logging
from tests.devices import LIMIT
from tests.helpers import PROJECT

PREPARED = """
import logging
from rpc_kit.logs import set_up_logging
log = logging.getLogger("lab.oven")
"""
EVERY_LEVEL = """
for level in (10, 20, 25, 30, 40, 50):
    log.log(level, "level %d", level)
"""


def run(program: str, stderr: int, **environment: str) -> tuple[int, str]:
    """Run a program with that standard error; its exit status and what it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", PREPARED + program],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=LIMIT,
    )
    return ran.returncode, ran.stdout


def lines_of(program: str, journal: bool = False) -> list[str]:
    """What a program writes to standard error, which is the journal or is not."""
    reader, writer = os.pipe()
    with open(reader, encoding="utf-8") as output:
        with open(writer) as errors:
            found = os.fstat(writer)
            inode = found.st_ino if journal else found.st_ino + 1
            assert (0, "") == run(program, errors.fileno(), JOURNAL_STREAM=f"{found.st_dev}:{inode}")
        return output.read().splitlines()


def test_lines_for_people() -> None:
    """Lines that do not go to the journal have time, level and logger; below info there are none."""
    lines = lines_of("set_up_logging()" + EVERY_LEVEL)
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"

    assert ["INFO", "Level 25", "WARNING", "ERROR", "CRITICAL"] == [
        re.fullmatch(rf"{time} (.*) lab\.oven: level \d\d", line)[1] for line in lines
    ]


def test_lines_for_the_journal() -> None:
    """Lines that go to the journal have a priority and no time."""
    lines = lines_of("set_up_logging('debug')" + EVERY_LEVEL, journal=True)

    expected = [(7, 10), (6, 20), (5, 25), (4, 30), (3, 40), (3, 50)]
    assert [f"<{priority}>lab.oven: level {level}" for priority, level in expected] == lines


def test_traceback_for_the_journal() -> None:
    """Each line of a message and of its traceback has the priority, as the journal makes an entry of each."""
    program = """
set_up_logging()
try:
    raise ValueError("first\\nsecond")
except ValueError:
    log.exception("one\\ntwo")
"""
    lines = lines_of(program, journal=True)

    assert ["<3>lab.oven: one", "<3>two", "<3>Traceback (most recent call last):"] == lines[:3]
    assert ["<3>ValueError: first", "<3>second"] == lines[-2:]
    assert [] == [line for line in lines if not line.startswith("<3>")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("'warning'", "30 40 50"),
        ("'ERROR'", "40 50"),
        ("'critical', ['lab=info']", "20 25 30 40 50"),
        ("'error', ['lab.oven=debug', 'other=critical']", "10 20 25 30 40 50"),
        ("'debug', ['lab=warning', 'lab.oven=error']", "40 50"),
        ("filters=('lab.oven=warning',)", "30 40 50"),
        ("filters=['lab.oven=error', 'lab.oven=warning']", "30 40 50"),
    ],
)
def test_levels(arguments: str, expected: str) -> None:
    """A filter holds for its logger and those below it, the level for all others; the last one wins."""
    lines = lines_of(f"set_up_logging({arguments})" + EVERY_LEVEL, journal=True)

    assert expected == " ".join(line[-2:] for line in lines)


def test_set_up_twice() -> None:
    """Who sets it up again does not get each line twice."""
    program = "set_up_logging('debug'); set_up_logging('info'); log.info('once'); log.debug('never')"

    assert ["<6>lab.oven: once"] == lines_of(program, journal=True)


@pytest.mark.parametrize(
    ("level", "filters", "text"),
    [
        ("loud", [], "a log level is one of debug, info, warning, error, critical, not 'loud'"),
        ("", [], "not ''"),
        ("10", [], "not '10'"),
        ("info", ["rpc_kit"], "a log filter is LOGGER=LEVEL, as rpc_kit.calls=debug, not 'rpc_kit'"),
        ("info", ["=debug"], "not '=debug'"),
        ("info", ["rpc_kit=debug", "rpc_kit="], "a log level is one of .*, not ''"),
    ],
)
def test_wrong_level(level: str, filters: list[str], text: str) -> None:
    """What is no level or no filter is refused, and nothing is set up."""
    before = logging.getLogger().handlers[:], logging.getLogger("rpc_kit").level
    with pytest.raises(ValueError, match=text):
        set_up_logging(level, filters)

    assert before == (logging.getLogger().handlers, logging.getLogger("rpc_kit").level)


def broken_pipe() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def lost_terminal() -> int:
    """A terminal that was closed."""
    master, slave = os.openpty()
    os.close(master)
    return slave


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("end", [broken_pipe, lost_terminal])
@pytest.mark.parametrize("journal", [False, True])
def test_nobody_reads(end: Callable[[], int], journal: bool) -> None:
    """When nobody reads standard error any more the process goes on, and ends with status 0."""
    errors = end()
    found = os.fstat(errors)
    stream = f"{found.st_dev}:{found.st_ino}" if journal else ""
    program = "set_up_logging()\nfor _ in range(1000): log.info('x' * 100)\nprint('done')"
    try:
        assert (0, "done\n") == run(program, errors, JOURNAL_STREAM=stream)
    finally:
        os.close(errors)


def test_full_disk() -> None:
    """A line that cannot be written is lost, and nothing is raised."""
    errors = full_disk()
    try:
        assert "done\n" == run("set_up_logging(); log.info('lost'); print('done')", errors)[1]
    finally:
        os.close(errors)


@pytest.mark.parametrize("end", ["sys.stderr.close()", "sys.stderr = None", "import os; os.close(2)"])
def test_without_standard_error(end: str) -> None:
    """A process without standard error logs nothing, and nothing is raised."""
    for program in (f"set_up_logging(); {end}", f"{end}; set_up_logging()"):
        assert (0, "done\n") == run(f"import sys; {program}; log.info('lost'); print('done')", subprocess.DEVNULL)


def test_wrong_message() -> None:
    """A message that cannot be made is a fault of the program, and shown."""
    lines = lines_of("set_up_logging(); log.info('%d', 'x')")

    assert "TypeError: %d format: a real number is required, not str" in lines


@pytest.mark.parametrize("text", ["", "1", "1:2:3", "soon"])
def test_strange_journal_stream(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is no device and inode is not the journal."""
    monkeypatch.setenv("JOURNAL_STREAM", text)

    assert not goes_to_journal()


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """A parser with the options for logging."""
    made = argparse.ArgumentParser(prog="lab", exit_on_error=False)
    add_log_options(made)
    return made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", ("info", [])),
        ("--log-level debug", ("debug", [])),
        ("--log a=debug --log b.c=error", ("info", ["a=debug", "b.c=error"])),
    ],
)
def test_options(parser: argparse.ArgumentParser, arguments: str, expected: Any) -> None:
    """The options give the arguments of set_up_logging."""
    options = parser.parse_args(arguments.split())

    assert expected == (options.log_level, options.log)


@pytest.mark.parametrize(
    ("arguments", "text"), [("--log-level loud", "a log level is one of .* not 'loud'"), ("--log a", "LOGGER=LEVEL")]
)
def test_wrong_options(parser: argparse.ArgumentParser, arguments: str, text: str) -> None:
    """A wrong level or filter is an error of the command line that says what is expected."""
    with pytest.raises(argparse.ArgumentError, match=text):
        parser.parse_args(arguments.split())
