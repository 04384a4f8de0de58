"""The command line; each group of commands is a module with an ``add_command``."""

from ..errors import RPCError


class CommandError(RPCError):
    """A command could not do what it was asked for; said in one line, and the exit status of the program."""

    status = 1


class UsageError(CommandError, ValueError):
    """A command cannot do it, as the command line or a file is wrong; trying again does not help."""

    status = 2


def one_line(error: BaseException) -> str:
    """The text of an error in one line, with nothing for the terminal; where it says nothing, its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(each if each.isprintable() else "?" for each in text)
