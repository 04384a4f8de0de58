"""Imports point down, modules stay small, and the core needs few packages."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("rpc_kit", "registry")
ORDER = """
    rpc_kit.errors rpc_kit.numpy_values
    rpc_kit.compression
    rpc_kit.locked_file rpc_kit.allocation rpc_kit.sharedmem
    rpc_kit.convert rpc_kit.signals rpc_kit.properties rpc_kit.methods
    rpc_kit.messages rpc_kit.buffers rpc_kit.interface rpc_kit.wire rpc_kit.journal rpc_kit.dispatch rpc_kit.addresses
    rpc_kit.folders rpc_kit.mdns rpc_kit.discovery rpc_kit.process rpc_kit.sockets rpc_kit.connections
    rpc_kit.postponed rpc_kit.transfer rpc_kit.stream_sender
    rpc_kit.endpoint rpc_kit.publisher rpc_kit.registration rpc_kit.registrar rpc_kit.systemd
    rpc_kit.logs rpc_kit.server_engine rpc_kit.server rpc_kit.calls rpc_kit.stats rpc_kit.subscriber
    rpc_kit.stream_reader rpc_kit.client_engine rpc_kit.client rpc_kit.watching rpc_kit.lookup rpc_kit
    rpc_kit.cli rpc_kit.cli.device_class rpc_kit.cli.device_file rpc_kit.cli.serve rpc_kit.cli.units rpc_kit.cli.main
    rpc_kit.cli.__main__ rpc_kit.__main__
    registry.table registry.stores registry.stores.base registry.stores.memory registry.stores.sqlite
    registry.stores.etcd_mirror registry.stores.etcd_client registry.stores.etcd registry.directory registry.interface
    registry.callbacks registry.service registry registry.config registry.cli registry.__main__
""".split()
NUMBERS = {module: number for number, module in enumerate(ORDER)}
CORE_DEPENDENCIES = {"zmq", "msgspec", "numpy", "decorator", "sdnotify"}
EXTRAS = {
    "rpc_kit.compression": {"simplejpeg"},
    "rpc_kit.discovery": {"zeroconf"},
    "rpc_kit.mdns": {"zeroconf", "ifaddr"},
    "registry.stores.etcd_client": {"etcd3gw", "requests"},
}
"""What a module may import besides, where it is used."""
MODULE_LIMIT = 400
FUNCTION_LIMIT = 50


def module_name(file: Path) -> str:
    parts = file.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for package in PACKAGES for file in sorted((PROJECT / package).rglob("*.py"))}


def imports(module: str, tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports, anywhere in it; a name from a package may be a submodule."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in FILES else source


def lines_of_code(tree: ast.AST) -> int:
    """Lines that hold code: neither empty, nor comment, nor docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(text)
        for node in ast.walk(tree)
        for text in (node.body if isinstance(node, documented) else [])
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }
    lines: set[int] = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if id(node) in docstrings:
            continue
        if isinstance(node, (ast.stmt, ast.expr)):
            lines |= {node.lineno, node.end_lineno or node.lineno}
        pending += ast.iter_child_nodes(node)
    return len(lines)


@pytest.fixture(params=FILES)
def module(request: pytest.FixtureRequest) -> str:
    """Each module of the packages."""
    return str(request.param)


@pytest.fixture
def tree(module: str) -> ast.Module:
    """Its syntax tree."""
    return ast.parse(FILES[module].read_text())


def test_every_module_has_a_number() -> None:
    """The table holds exactly the modules that there are."""
    assert sorted(FILES) == sorted(ORDER)


def test_imports_point_down(module: str, tree: ast.Module) -> None:
    """A module imports modules with lower numbers only, so that no imports are circular."""
    own = [found for found in imports(module, tree) if found.partition(".")[0] in PACKAGES]

    assert [] == [found for found in own if NUMBERS[found] >= NUMBERS[module]]


def test_core_does_not_import_registry(module: str, tree: ast.Module) -> None:
    """rpc_kit never imports registry."""
    reached = {found.partition(".")[0] for found in imports(module, tree)}

    assert not (module.partition(".")[0] == "rpc_kit" and "registry" in reached)


def test_core_needs_few_packages(module: str, tree: ast.Module) -> None:
    """Third-party imports are those of the core dependencies, and those of extras in their own modules."""
    reached = {found.partition(".")[0] for found in imports(module, tree)}

    assert set() == reached - CORE_DEPENDENCIES - EXTRAS.get(module, set()) - set(PACKAGES) - sys.stdlib_module_names


def test_module_is_not_too_long(tree: ast.Module) -> None:
    """A module has at most 400 lines of code, a function 50."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]

    assert lines_of_code(tree) <= MODULE_LIMIT
    assert {} == {each.name: count for each in functions if (count := lines_of_code(each)) > FUNCTION_LIMIT}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import rpc_kit.wire", ["rpc_kit.wire"]),
        ("from . import wire", ["rpc_kit.wire"]),
        ("from .wire import Frames", ["rpc_kit.wire"]),
        ("from rpc_kit import wire, RPCClient", ["rpc_kit.wire", "rpc_kit"]),
        ("def late():\n    from .client import RPCClient", ["rpc_kit.client"]),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: list[str]) -> None:
    """Absolute, relative and late imports are all found."""
    assert expected == list(imports("rpc_kit.errors", ast.parse(source)))


def test_lines_of_code_leave_out_docstrings() -> None:
    """Docstrings, comments and empty lines do not count."""
    source = '"""One.\n\nTwo."""\n\n# three\ndef f():\n    """Four."""\n    return (\n        5\n    )\n'

    assert 4 == lines_of_code(ast.parse(source))
