"""The public types, as mypy sees them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
RIGHT = sorted((TESTS / "typing").glob("*.py"))
WRONG = sorted((TESTS / "typing_errors").glob("*.py"))


def mypy(*files: Path) -> list[tuple[str, int, str]]:
    """File, line and code of each error in these files."""
    command = [sys.executable, "-m", "mypy", "--no-pretty", "--hide-error-context", *files]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=110)
    assert "" == done.stderr
    found = re.findall(r"^(\S+):(\d+): error: .*  \[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    return [(Path(file).name, int(line), code) for file, line, code in found if TESTS.parent / file in files]


def expected_errors(file: Path) -> list[tuple[str, int, str]]:
    """What the comments of a file announce."""
    lines = enumerate(file.read_text().splitlines(), 1)
    marks = [(line, re.search(r"  # error: ([a-z-]+)$", text)) for line, text in lines]
    return [(file.name, line, mark[1]) for line, mark in marks if mark]


def test_right_use_has_no_errors() -> None:
    """Clients, devices and the decorators have the types that a user expects."""
    assert [] == mypy(*RIGHT)


@pytest.mark.parametrize("file", WRONG, ids=lambda file: file.stem)
def test_wrong_use_is_found(file: Path) -> None:
    """Each line that misuses a client or device is an error, and no other."""
    assert expected_errors(file) == mypy(*RIGHT, file)
