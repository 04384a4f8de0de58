"""Where the configuration and the state of a user are (XDG Base Directory Specification)."""

import os


def user_folder(variable: str, usual: str) -> str | None:
    """The folder that a variable names, else the usual one below the home; None for a user without a home.

    Relative paths in the variable are ignored, as the specification wants it.
    """
    given = os.environ.get(variable, "")
    if os.path.isabs(given):
        return given
    found = os.path.expanduser(f"~/{usual}")
    return None if found.startswith("~") else found


def config_folder() -> str | None:
    """Where the configuration of a user is."""
    return user_folder("XDG_CONFIG_HOME", ".config")
