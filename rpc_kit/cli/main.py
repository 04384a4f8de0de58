"""``rpc-kit``: the parser of all commands."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import RPCError
from ..logs import discard, goes_to_journal
from . import CommandError, UsageError, one_line, serve, units

COMMANDS = (serve, units)
INTERRUPTED = 130
"""Exit status after Ctrl-C, as that of shells."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no options that are cut short."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = Parser(prog="rpc-kit", description="Lab devices, served and used by name.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in COMMANDS:
        command.add_command(commands)
    return run_command(parser, arguments)


def run_command(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Run what the options name as `run`; the exit status. Whatever is wrong is said in one line."""
    try:
        options = parser.parse_args(arguments)
        status: int = options.run(options)
        print(end="", flush=True)
    except RPCError as exc:
        priority = "<3>" if goes_to_journal() else ""
        with contextlib.suppress(BrokenPipeError):
            print(f"{priority}{parser.prog}: {one_line(exc)}", file=sys.stderr, flush=True)
        return exc.status if isinstance(exc, CommandError) else 1
    except BrokenPipeError:
        discard(sys.stdout)  # whoever read the output has seen enough
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    return status
