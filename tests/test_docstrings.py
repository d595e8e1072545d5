"""Every public name is documented the way numpydoc wants it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import clipad_sklearn

pytest.importorskip("numpydoc", reason="numpydoc is not installed")

from numpydoc.hooks.validate_docstrings import parse_config
from numpydoc.validate import validate

ROOT = Path(__file__).parent.parent
MODULES = ("", ".datasets", ".metrics", ".model_selection", ".plotting")
CHECKS = parse_config(str(ROOT))["checks"]


def public_names() -> Iterator[tuple[str, bool]]:
    """Yield dotted names, and whether they are attributes of a class."""
    for suffix in MODULES:
        module = importlib.import_module(f"clipad_sklearn{suffix}")
        for name in module.__all__:
            value = getattr(module, name)
            if not callable(value):
                continue  # constants, such as names of families
            yield f"{module.__name__}.{name}", False
            if inspect.isclass(value):
                for attribute in own_attributes(value):
                    yield f"{module.__name__}.{name}.{attribute}", True


def own_attributes(cls: type) -> Iterator[str]:
    """Yield public methods and properties that are defined in this package."""
    for name in dir(cls):
        owner = next(base for base in cls.__mro__ if name in vars(base))
        value: Any = inspect.getattr_static(cls, name)
        if isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        documented = isinstance(value, property) or inspect.isfunction(value)
        if (
            not name.startswith("_")
            and documented
            and owner.__module__.startswith("clipad_sklearn")
        ):
            yield name


NAMES = list(public_names())


def test_public_names_are_found():
    names = {name for name, _ in NAMES}
    assert {f"clipad_sklearn.{name}" for name in clipad_sklearn.__all__} <= names
    assert "clipad_sklearn.SDPDetector.iter_anomaly_maps" in names  # inherited
    assert "clipad_sklearn.FusionDetector.n_features_in_" in names  # a property
    assert "clipad_sklearn.FusionDetector.set_fit_request" not in names  # not ours


def test_checks_are_configured():
    assert {"EX01", "GL08", "PR01", "RT01", "SS03"} <= CHECKS


@pytest.mark.parametrize(
    ("name", "is_attribute"), NAMES, ids=[name for name, _ in NAMES]
)
def test_docstring(name, is_attribute):
    # The example of a class shows its methods too.
    checks = CHECKS - {"EX01"} if is_attribute else CHECKS
    errors = [error for error in validate(name)["errors"] if error[0] in checks]
    assert not errors


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8").split()
    for name, is_attribute in NAMES:
        if not is_attribute:
            assert name.removeprefix("clipad_sklearn.") in reference, name
