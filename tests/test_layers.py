# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports go one way: the table of ARCHITECTURE.md is the law, and this is its court.

Each line of the table imports only from lines above it, and on one line only from names to the left. Imports inside
functions and under TYPE_CHECKING count: both tie two modules together.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.needs import ROOT

PACKAGE = ROOT / "gatekeeper"
FRONT_DOORS = ("policy.server", "milter.server", "replay", "diagnose")
"""Stand on one line, and none imports another: each must work where the others cannot."""
LICENCE = "# SPDX-License-Identifier: GPL-3.0-or-later"
PYMILTER = ("milter", "Milter")
KNOW_PYMILTER = {"milter.callbacks", "milter.server"}


def read_table(text: str) -> list[str]:
    """The names of the layer table, from the bottom of the house up: `| 1 | `request` `verdict` | … |`."""
    lines = re.findall(r"^\| *(\d+) *\| *((?:`[\w.]+` *)+)\|", text, re.MULTILINE)
    assert [str(n + 1) for n in range(len(lines))] == [number for number, _ in lines]
    return [name for _, names in lines for name in re.findall(r"`([\w.]+)`", names)]


TABLE = read_table((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """`gatekeeper/policy/server.py` is `policy.server`; a package's `__init__.py` has the package's name."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer_of(module: str) -> str | None:
    """The entry of the table that `module` belongs to: itself or the nearest package around it."""
    while module and module not in TABLE:
        module = module.rpartition(".")[0]
    return module or None


def is_bare(module: str) -> bool:
    """A package that only holds others, such as `gatekeeper` itself: a docstring and constants, no imports."""
    return MODULES[module].name == "__init__.py" and layer_of(module) is None


def imports_of(tree: ast.Module, module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that is imported anywhere in `tree`, `a.b` for `from a import b`."""
    package = ("gatekeeper." + module).strip(".").split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                start = package[: len(package) - level + 1] if level else []
                base = ".".join([*start, *([source] if source else [])])
                yield from ((node.lineno, f"{base}.{name.name}") for name in names)
            case ast.Call(func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module")):
                named = node.args[0] if node.args else None
                assert isinstance(named, ast.Constant), f"{path}:{node.lineno}: imports what cannot be known here"
                yield node.lineno, str(named.value)


@cache
def own_imports(module: str) -> tuple[tuple[int, str], ...]:
    """The imports of `module` that are gatekeeper's own, as names of MODULES."""
    path = MODULES[module]
    found = []
    for line, name in imports_of(ast.parse(path.read_bytes()), module, path):
        if name.partition(".")[0] == "gatekeeper":
            target = name.removeprefix("gatekeeper").removeprefix(".")
            found.append((line, target if target in MODULES else target.rpartition(".")[0]))
    return tuple(found)


def objections(module: str) -> list[str]:
    """What is wrong with the imports of `module`, a sentence each."""
    mine = layer_of(module)
    found = []
    for line, target in own_imports(module):
        theirs = layer_of(target)
        where = f"gatekeeper/{MODULES[module].relative_to(PACKAGE)}:{line}: {module or 'gatekeeper'} imports {target}"
        if theirs is None or theirs == mine:
            continue
        if mine is None:
            found.append(f"{where}, but a package that is in no layer only holds others")
        elif mine in FRONT_DOORS and theirs in FRONT_DOORS:
            found.append(f"{where}, but front doors do not know each other: move what both need to a line above")
        elif TABLE.index(theirs) > TABLE.index(mine):
            found.append(f"{where}, which stands below it (or to its right) in the table of ARCHITECTURE.md")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_stands_in_a_layer(module: str) -> None:
    assert layer_of(module) is not None or is_bare(module), (
        f"gatekeeper/{MODULES[module].relative_to(PACKAGE)} is in no layer: add `{module}` to the table under "
        f"“Imports go one way” in ARCHITECTURE.md, on the highest line whose lines above hold all that it imports"
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_above(module: str) -> None:
    found = objections(module)
    assert [] == found, "\n".join(found)


def test_the_table_names_nothing_that_is_gone() -> None:
    assert [] == [name for name in TABLE if name not in MODULES]


def test_the_table_names_nothing_twice() -> None:
    assert sorted(set(TABLE)) == sorted(TABLE)


def test_only_the_milter_server_and_its_callbacks_import_pymilter() -> None:
    importers = {
        module
        for module, path in MODULES.items()
        for _, name in imports_of(ast.parse(path.read_bytes()), module, path)
        if name.partition(".")[0] in PYMILTER
    }
    assert importers <= KNOW_PYMILTER


@pytest.mark.integration("gatekeeper")
def test_the_parent_and_the_command_line_live_without_libmilter() -> None:
    program = (
        "import sys, gatekeeper.cli, gatekeeper.daemon.supervisor; "
        "print(*sorted({'milter', 'Milter'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "" == done.stdout.strip()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import gatekeeper.cli", "gatekeeper.cli"),
        ("from gatekeeper import cli", "gatekeeper.cli"),
        ("from gatekeeper.stores.store import Store", "gatekeeper.stores.store.Store"),
        ("from . import protocol", "gatekeeper.policy.protocol"),
        ("from ..stores.store import Store", "gatekeeper.stores.store.Store"),
        ("def f():\n    from gatekeeper import cli", "gatekeeper.cli"),
        ("if TYPE_CHECKING:\n    import gatekeeper.cli", "gatekeeper.cli"),
        ("importlib.import_module('gatekeeper.cli')", "gatekeeper.cli"),
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str, expected: str) -> None:
    found = imports_of(ast.parse(source), "policy.server", PACKAGE / "policy" / "server.py")
    assert [expected] == [name for _, name in found]


def circle_through(module: str) -> list[str]:
    """The shortest way from `module` over its imports back to itself; empty if there is none."""
    ways, seen = [[module]], {module}
    for way in ways:
        for _, target in own_imports(way[-1]):
            if target == module:
                return [*way, module]
            if target in MODULES and target not in seen:
                seen.add(target)
                ways.append([*way, target])
    return []


def test_no_files_import_each_other_in_a_circle() -> None:
    circles = [" -> ".join(circle) for module in MODULES if (circle := circle_through(module))]
    assert [] == circles


def test_at_most_five_modules_stand_outside_a_package() -> None:
    assert len([module for module, path in MODULES.items() if path.parent == PACKAGE]) <= 5


@pytest.mark.parametrize("module", MODULES)
def test_a_module_starts_with_its_contract(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_bytes()))


def test_every_file_names_its_licence_first() -> None:
    sources = [path for folder in (PACKAGE, ROOT / "tests") for path in folder.rglob("*.py") if path.stat().st_size]
    firsts = {str(path): path.read_text(encoding="utf-8").removeprefix("#!/usr/bin/env python3\n") for path in sources}
    assert [] == [path for path, text in firsts.items() if not text.startswith(f"{LICENCE}\n")]
