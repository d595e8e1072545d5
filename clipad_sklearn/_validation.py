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
    # To scikit-learn, True is a number.
    as_number = not isinstance(value, bool)
    for constraint in made:
        if constraint.is_satisfied_by(value) and (
            as_number or not isinstance(constraint, Interval)
        ):
            return
    described = [_described(constraint) for constraint in made if not constraint.hidden]
    expected = ", ".join(described[:-1]) + " or " * (len(described) > 1) + described[-1]
    raise ValueError(f"{name}={value!r}: expected {expected}.")


def check_blocks(layers: Any, depth: int) -> tuple[int, ...]:
    """Return the checked numbers of some blocks of a tower, counted from 1."""
    try:
        given = tuple(layers)
        valid = (
            len(given) > 0
            and all(isinstance(n, (int, np.integer)) and 1 <= n <= depth for n in given)
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
