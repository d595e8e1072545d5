"""Code written for 0.1.0 runs: its public names, parameters and defaults still exist.

New names may come, and new parameters that have a default and are given by keyword.
``python tests/test_public_api.py`` prints what the installed version has, in the form
of ``data/public_0.1.0.json``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

RECORD = Path(__file__).parent / "data" / "public_0.1.0.json"
OLD = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
MODULES = ("", ".datasets", ".metrics", ".model_selection", ".plotting")


def signature_of(thing: Any) -> str | None:
    """The parameters and their defaults, without types; None where Python has none."""
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return None
    empty = inspect.Parameter.empty
    plain = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=empty))


def public_names() -> dict[str, str | None]:
    """Every public name and every public method, with its signature."""
    found: dict[str, str | None] = {}
    for suffix in MODULES:
        module = importlib.import_module(f"clipad_sklearn{suffix}")
        for name in module.__all__:
            thing = getattr(module, name)
            found[f"{module.__name__}.{name}"] = (
                signature_of(thing) if callable(thing) else None
            )
            for method in sorted(dir(thing)) if inspect.isclass(thing) else ():
                value = getattr(thing, method)
                ours = str(getattr(value, "__module__", "")).startswith("clipad")
                if ours and callable(value) and not method.startswith("_"):
                    key = f"{module.__name__}.{name}.{method}"
                    found[key] = signature_of(value)
    return found


def test_a_public_name_stands_in_every_list() -> None:
    """Those that are imported lazily, those for type checkers, and `__all__`."""
    package = importlib.import_module("clipad_sklearn")
    tree = ast.parse(Path(package.__file__ or "").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = package._MODULES | dict.fromkeys(package._SUBMODULES)
    assert typed == lazy
    assert {*package._MODULES} == {*package.__all__}


def parameters(signature: str) -> tuple[list[str], dict[str, str | None]]:
    """Names that may be given by position, and the default of every parameter.

    ``**`` stands for any further keywords.
    """
    definition = ast.parse(f"def f{signature}: pass").body[0]
    assert isinstance(definition, ast.FunctionDef)
    arguments = definition.args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    without = len(positional) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [None] * without + list(arguments.defaults)
    defaults += arguments.kw_defaults
    names = positional + [argument.arg for argument in arguments.kwonlyargs]
    texts = [None if value is None else ast.unparse(value) for value in defaults]
    found = dict(zip(names, texts, strict=True))
    if arguments.kwarg:
        found["**"] = ""
    return positional, found


def difference(old: str, new: str) -> str:
    """What keeps a call written for `old` from meaning the same with `new`."""
    old_positional, old_defaults = parameters(old)
    positional, defaults = parameters(new)
    if positional[: len(old_positional)] != old_positional:
        return f"by position {old_positional} became {positional}"
    for name, value in old_defaults.items():
        if name not in defaults:
            return f"{name} is gone"
        if value is not None and defaults[name] != value:  # None: there was none
            return f"{name}={value} became {defaults[name]}"
    for name in defaults.keys() - old_defaults.keys():
        if defaults[name] is None:
            return f"{name} has no default"
    return ""


@pytest.mark.parametrize("name", OLD)
def test_still_there(name):
    module, _, rest = name.partition(".")
    thing = importlib.import_module(module)
    for part in rest.split("."):
        thing = getattr(thing, part, None) or importlib.import_module(
            f"{thing.__name__}.{part}"
        )
    if OLD[name] is not None:
        assert difference(OLD[name], signature_of(thing)) == ""


@pytest.mark.parametrize(
    ("new", "what"),
    [
        ("(a, *, c=2, **options)", "by position"),
        ("(b, a=1, *, c=2, **options)", "by position"),
        ("(a, b=1, **options)", "c is gone"),
        ("(a, b=1, *, c=3, **options)", "c=2 became 3"),
        ("(a, b=1, *, c=2, d, **options)", "d has no default"),
        ("(a, b=1, *, c=2)", "** is gone"),
        ("(a, b=1, *, c=2, d=None, **rest)", ""),
        ("(a=0, b=1, *, c=2, **options)", ""),
    ],
)
def test_a_difference_is_seen(new, what):
    found = difference("(a, b=1, *, c=2, **options)", new)
    assert found.startswith(what)
    assert bool(found) == bool(what)


if __name__ == "__main__":
    print(json.dumps(public_names(), indent=0, sort_keys=True))
