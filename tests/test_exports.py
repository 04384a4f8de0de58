"""What the packages export."""

import inspect
from types import ModuleType

import pytest

import registry
import rpc_kit
from rpc_kit.interface import RESERVED

PACKAGES = pytest.mark.parametrize("package", [rpc_kit, registry], ids=lambda package: package.__name__)


def public_names(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


@PACKAGES
def test_public_names_are_exactly_all(package: ModuleType) -> None:
    """Besides the submodules there are no public names but those in __all__, which is sorted."""
    found = {name for name in public_names(package) if not inspect.ismodule(getattr(package, name))}

    assert found == set(package.__all__)
    assert sorted(package.__all__) == package.__all__


def test_names_of_the_described_system_are_there() -> None:
    """The names that users of the described system know are exported."""
    core = {"RPCServer", "RPCClient", "RPCProperty", "RPCSignal", "RPCSignalReceiver", "RPCEvents", "NoResult"}
    of_registry = {
        "DeviceRegistry", "EventType", "AliveCheckState", "register_device", "unregister_device", "send_alive_check",
    }  # fmt: skip

    assert set() == core - set(rpc_kit.__all__)
    assert set() == of_registry - set(registry.__all__)


@PACKAGES
def test_every_export_has_a_docstring(package: ModuleType) -> None:
    """Exports, and the public attributes of exported classes, say what they are."""
    exports = {name: getattr(package, name) for name in package.__all__}
    members = {
        f"{name}.{attribute}": value
        for name, export in exports.items()
        if inspect.isclass(export)
        for attribute, value in vars(export).items()
        if not attribute.startswith("_") and (callable(value) or isinstance(value, (property, staticmethod)))
    }

    assert [] == [name for name, each in exports.items() if not each.__doc__]
    assert [] == [name for name, each in members.items() if not inspect.getdoc(each)]


def test_reserved_names_are_the_public_attributes() -> None:
    """An interface may use every name but the public attributes of servers and clients."""
    assert public_names(rpc_kit.RPCServer) | public_names(rpc_kit.RPCClient) == RESERVED
