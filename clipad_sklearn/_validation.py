"""Checks of parameters, and fits that change nothing when they fail."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, TypeVar, cast

import numpy as np
from sklearn.utils._param_validation import (
    Interval,
    Options,
    StrOptions,
    make_constraint,
)

F = TypeVar("F", bound=Callable[..., Any])


def all_or_nothing(fit: F) -> F:
    """Leave the estimator as it was where `fit` fails or is interrupted."""

    @functools.wraps(fit)
    def guarded(self: Any, *args: Any, **params: Any) -> Any:
        before = dict(vars(self))
        try:
            return fit(self, *args, **params)
        except BaseException:
            self.__dict__ = before
            raise

    return cast(F, guarded)


def check_parameters(estimator: Any) -> None:
    """Check an estimator against ``_parameter_constraints`` of its classes.

    They are scikit-learn's. Parameters without one are checked where they are used.
    """
    for cls in reversed(type(estimator).__mro__):
        constraints = vars(cls).get("_parameter_constraints", {})
        for name in constraints:
            check_value(name, getattr(estimator, name), constraints[name])


def check_value(name: str, value: Any, constraints: Sequence[Any]) -> None:
    """Check one value, of which any of the constraints may hold."""
    made = [make_constraint(constraint) for constraint in constraints]
    for given, constraint in zip(constraints, made, strict=True):
        # To scikit-learn, True is a number.
        as_meant = given == "boolean" or not isinstance(value, bool)
        if as_meant and constraint.is_satisfied_by(value):
            return
    described = [_described(constraint) for constraint in made if not constraint.hidden]
    expected = ", ".join(described[:-1]) + " or " * (len(described) > 1) + described[-1]
    raise ValueError(f"{name}={value!r}: expected {expected}.")


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number from 1 on, which True is not."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and bool(value >= 1)


def check_number(name: str, value: Any) -> None:
    """Check a threshold: nothing is above or below NaN."""
    number = np.ndim(value) == 0 and np.asarray(value).dtype.kind in "fiu"
    if not number or np.isnan(value):
        raise ValueError(f"{name}={value!r}: expected a number.")


def check_blocks(layers: Any, depth: int) -> tuple[int, ...]:
    """Return the checked numbers of some blocks of a tower, counted from 1."""
    try:
        given = tuple(layers)
        valid = (
            len(given) > 0
            and all(is_whole(n) and n <= depth for n in given)
            and all(a < b for a, b in itertools.pairwise(given))
        )
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(
            f"layers={layers!r}: expected rising numbers of blocks from 1 to {depth}, "
            "the depth of this model, or None."
        )
    return tuple(int(n) for n in given)


def _described(constraint: Any) -> str:
    if isinstance(constraint, StrOptions):
        options = sorted(map(repr, constraint.options))
        return options[0] if len(options) == 1 else "one of " + ", ".join(options)
    if isinstance(constraint, Options):
        return "one of " + ", ".join(sorted(map(repr, constraint.options)))
    if not isinstance(constraint, Interval):
        return str(constraint)
    kind = "an integer" if constraint.type is Integral else "a number"
    left, right = constraint.left, constraint.right
    if right is None:
        sign = ">=" if constraint.closed in ("left", "both") else ">"
        return f"{kind} {sign} {left}"
    opening = "[" if constraint.closed in ("left", "both") else "("
    closing = "]" if constraint.closed in ("right", "both") else ")"
    return f"{kind} in {opening}{left}, {right}{closing}"
