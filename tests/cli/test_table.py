"""Tables of scores."""

from __future__ import annotations

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipad_sklearn._cli.table import as_csv


def written(value: float) -> str:
    rows = csv.DictReader(io.StringIO(as_csv([{"x": value}], ("x",))))
    return next(rows)["x"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-10.993, "-10.9930"),
        (0.875, "0.8750"),
        (1.234e-05, "1.2340e-05"),
        (0.5, "0.5"),
        (1.2345, "1.2345"),
    ],
)
def test_no_decimals_look_like_thousands(value: float, text: str) -> None:
    """Where the decimal sign is a comma, a spreadsheet makes 875 of 0.875."""
    assert written(value) == text


@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.decimals(-1000, 1000, places=3).map(float),
    )
)
def test_numbers_stay_numbers(value: float) -> None:
    text = written(value)
    assert float(text) == value
    assert not re.search(r"\.\d{3}(?!\d)", text)
