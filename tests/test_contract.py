"""Which room may import which, and what is private to a module."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clipad_sklearn"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The only modules that import torch or open_clip when they are imported.
TORCH = {
    f"_clip/{name}.py"
    for name in (
        "blocks",
        "image_size",
        "loaded_model",
        "loading",
        "patch_tokens",
        "text_tower",
        "vision_tower",
    )
}


# Documented functions of other projects that begin with an underscore.
DOCUMENTED = {"os._exit"}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_arrows_point_down() -> None:
    pytest.importorskip("importlinter")
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("_clip/models.py", "from .._detectors import base"),
        ("metrics.py", "def f():\n    from ._cli import main"),
        ("_images.py", "import clipad_sklearn._clip.settings"),
    ],
)
def test_an_arrow_turned_round(module: str, line: str, tmp_path: Path) -> None:
    pytest.importorskip("importlinter")
    ignored = shutil.ignore_patterns("__pycache__", "tiny")
    shutil.copytree(PACKAGE, tmp_path / "clipad_sklearn", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "clipad_sklearn" / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


def imported_at_the_top(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            yield from (name.name.partition(".")[0] for name in statement.names)
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            yield str(statement.module).partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_is_imported_inside_functions(path: Path) -> None:
    found = set(imported_at_the_top(ast.parse(path.read_text(encoding="utf-8"))))
    if path.relative_to(PACKAGE).as_posix() not in TORCH:
        assert not found & {"torch", "open_clip", "torchvision", "matplotlib"}


def foreign_members(source: str) -> Iterator[str]:
    """Yield accesses to names with an underscore that the module does not define."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    own = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {n.id for n in nodes if isinstance(n, ast.Name)}
    own |= {
        n.attr
        for n in nodes
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [alias.name for alias in node.names]
            # Modules may be private; what is in one module of the package may not.
            names = [n for n in names if node.module and n.startswith("_")]
            yield from (n for n in names if not n.startswith("__"))
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        if node.attr.startswith("__") or node.attr in own:
            continue
        value = node.value
        of_self = isinstance(value, ast.Name) and value.id in ("self", "cls")
        of_super = isinstance(value, ast.Call) and "super" in ast.dump(value.func)
        if not of_self and not of_super and ast.unparse(node) not in DOCUMENTED:
            yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_member_of_another_module_is_private(path: Path) -> None:
    assert list(foreign_members(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "clip._model()",
        "def f(detector):\n    detector._set_offset(3)",
        "from .base import _check",
        "self.mapper._embedding_detector",
    ],
)
def test_private_members_are_found(source: str) -> None:
    assert len(list(foreign_members(source))) == 1


def test_functions_are_short_and_rooms_few() -> None:
    """Under 90 lines for a function, but for its docstring; 14 modules at the top."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                start = node.body[0].end_lineno if ast.get_docstring(node) else 0
                length = node.end_lineno - max(start, node.lineno)
                assert length < 90, f"{path.name}, {node.name}: {length} lines"
    private = [path for path in PACKAGE.glob("_*.py") if "__" not in path.name]
    assert len(private) <= 14
