"""Rows of scores: how they are ranked, written and printed."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import platform
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import metrics
from .._detectors.regions import REGION_FIELDS
from .._score_rows import error_row, score_row
from .._version import __version__
from .output import no_formula, printable, write_text, writing

COLUMNS = (
    "path",
    "rank",
    "verdict",
    "margin",
    "threshold",
    "p_value",
    "p_anomaly",
    "error",
)
REGION_COLUMNS = ("path", *REGION_FIELDS)
_DIGITS = 6  # in CSV and XLSX; JSON has them all
_Sheet = tuple[Sequence[str], list[dict[str, Any]]]  # columns and rows
_VERSIONS = ("open_clip_torch", "torch", "scikit-learn", "numpy", "pillow")


def make_rows(
    paths: Sequence[str],
    margins: np.ndarray,
    threshold: float,
    errors: dict[int, str] | None = None,
    *,
    is_margin: bool = True,
    calibration_scores: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of the table, most suspicious first, unreadable photos last.

    Equal margins are ranked by path. There are p-values where there are
    `calibration_scores`.
    """
    rows = []
    p_values = np.full(len(margins), np.nan)
    if calibration_scores is not None:
        p_values = metrics.p_values(margins, calibration_scores)
    # NaN has no place in an order: it would spoil that of the others.
    readable = np.flatnonzero(np.isfinite(margins)).tolist()
    order = sorted(readable, key=lambda i: (margins[i], paths[i]))
    for rank, i in enumerate(order, start=1):
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= score_row(paths[i], float(margins[i]), threshold, is_margin=is_margin)
        p_value = float(p_values[i]) if np.isfinite(p_values[i]) else None
        rows.append(row | {"rank": rank, "p_value": p_value})
    for i, reason in sorted((errors or {}).items()):
        row = dict.fromkeys(COLUMNS)
        rows.append(row | error_row(paths[i], reason) | {"verdict": "unreadable"})
    return rows


def write_rows(path: str, rows: list[dict[str, Any]], settings: Any = None) -> None:
    """Write a CSV or XLSX file, or with the settings a JSON file, in one go."""
    if path.endswith(".json"):
        report = {"settings": settings, "versions": versions(), "scores": rows}
        # ASCII keeps even names that are not valid Unicode, and can be read back.
        text = json.dumps(report, indent=1, default=str, allow_nan=False) + "\n"
        write_text(path, text)
        return
    if path.endswith(".xlsx"):
        sheets: dict[str, _Sheet] = {"scores": (COLUMNS, rows)}
        if any("regions" in row for row in rows):
            sheets["regions"] = (REGION_COLUMNS, region_rows(rows))
        _write_xlsx(path, sheets)
    else:
        write_csv(path, rows, COLUMNS)


def region_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each region of the photos."""
    return [
        {"path": row["path"]} | region
        for row in rows
        for region in row.get("regions", [])
    ]


def write_csv(
    path: str, rows: Iterable[dict[str, Any]], columns: Sequence[str]
) -> None:
    """Write a file for spreadsheets, with numbers of few digits."""
    # The mark by which spreadsheets know that letters are UTF-8.
    write_text(path, "\ufeff" + as_csv((_short(row, columns) for row in rows), columns))


def _short(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    values = {name: row[name] for name in columns}
    return {
        name: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
        for name, value in values.items()
    }


def _write_xlsx(path: str, sheets: dict[str, _Sheet]) -> None:
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    # Where a disk is full, what openpyxl leaves open would be heard of later.
    content = io.BytesIO()
    with writing(path) as temporary, open(temporary, "wb") as file:
        try:
            for title, (columns, rows) in sheets.items():
                _fill(book.create_sheet(title), columns, rows)
            book.save(content)
            file.write(content.getbuffer())
        except OSError as error:
            # Rows go to temporary files first, perhaps on another disk.
            reason = f"{error.strerror} (there, or in {tempfile.gettempdir()})"
            raise OSError(error.errno, reason) from error


def _fill(sheet: Any, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write rows to a sheet of a spreadsheet."""
    from openpyxl.cell import WriteOnlyCell

    sheet.freeze_panes = "A2"
    longest = max((len(row["path"]) for row in rows), default=0)
    sheet.column_dimensions["A"].width = min(max(longest, 10), 80)
    sheet.append(list(columns))
    for row in rows:
        cells = []
        for value in _short(row, columns).values():
            if isinstance(value, str):
                # As a text, whatever it begins with.
                value = WriteOnlyCell(sheet, _for_xml(value))
                value.data_type = "s"
            cells.append(value)
        sheet.append(cells)


def _for_xml(text: str) -> str:
    """Escape what a spreadsheet cannot hold, and nothing else."""
    # These stand for letters there, as _x0041_ for an A.
    text = re.sub("_(?=x[0-9A-Fa-f]{4}_)", "_x005F_", text)
    return re.sub(
        "[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]",
        lambda found: printable(found[0]),
        text,
    )


def as_csv(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as CSV; neither spreadsheets nor terminals obey the names in it."""
    buffer = io.StringIO(newline="")
    # Only so are line breaks of both kinds quoted, wherever they stand.
    writer = csv.DictWriter(
        buffer, columns, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    writer.writeheader()
    for row in rows:
        row = {name: _cell(value) for name, value in row.items()}
        names = {n: no_formula(row[n]) for n in ("path", "category") if n in row}
        writer.writerow(row | names)
    return buffer.getvalue()


class _Number(float):
    """A number that no spreadsheet reads as thousands: 0.875 is written 0.8750.

    Where the decimal sign is a comma, three digits after a point are whole thousands.
    """

    def __str__(self) -> str:
        return re.sub(r"(\.\d{3})(?!\d)", r"\g<1>0", float.__repr__(self))

    __repr__ = __str__


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return _Number(value)
    return _tame(value) if isinstance(value, str) else value


def _tame(text: str) -> str:
    """As `printable`, but for what quotes tame, and letters that Python knows not."""
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter in "\t\n\r" or unicodedata.category(letter) in ("Cn", "Co")
        else printable(letter)
        for letter in text
    )


def versions() -> dict[str, str]:
    """Return what ran: this package, Python, and the packages that matter."""
    return {
        "clipad-sklearn": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def print_table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print rows in aligned columns; the last one, a path, may be of any length."""
    table = [list(columns)]
    for row in rows:
        values = [row[name] for name in columns]
        table.append(
            [f"{v:.3f}" if isinstance(v, float) else printable(str(v)) for v in values]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    widths[-1] = 0
    for line in table:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())
