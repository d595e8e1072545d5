"""What a module calls its own (with an underscore) no other module uses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "clipad_sklearn"
MODULES = sorted(PACKAGE.rglob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def borrowed(source: str) -> list[str]:
    """Return private names that a module uses and does not define itself.

    `self._x` and the like are not looked at: a class may use what it inherits.
    """
    tree = ast.parse(source)
    own = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    # Such as os._exit, which is documented.
    libraries = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            # Modules of the package may have names with an underscore.
            if node.module is not None and not (PACKAGE / node.module).is_dir():
                found += [a.name for a in node.names if is_private(a.name)]
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            of = node.value
            inherited = isinstance(of, ast.Name) and of.id in {
                "self",
                "cls",
                *libraries,
            }
            inherited |= isinstance(of, ast.Call) and ast.unparse(of) == "super()"
            if not inherited:
                found.append(node.attr)
    return [name for name in found if name not in own]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_private_name_of_another_module(path: Path) -> None:
    assert not borrowed(path.read_text(encoding="utf-8"))


def test_borrowed_names_are_found() -> None:
    assert borrowed("from .base import _auroc") == ["_auroc"]
    assert borrowed("clip._model()") == ["_model"]
    assert borrowed("def _f(): ...\n_f()\nx._f\nself._g\nsuper()._h()") == []
