"""Folders of the user."""

import os

import pytest

from rpc_kit.folders import config_folder, user_folder


@pytest.mark.parametrize(
    ("given", "expected"), [("/there", "/there"), ("", "/home/me/.config"), ("not/absolute", "/home/me/.config")]
)
def test_which_folder(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    """That of the variable, if it is absolute; else the usual one of the user."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CONFIG_HOME", given)

    assert expected == config_folder()


def test_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none."""
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)

    assert user_folder("XDG_STATE_HOME", ".local/state") is None
