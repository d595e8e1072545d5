"""``clipad benchmark``: from a data set to tables, and from two runs to differences."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .._clip.models import load
from .._clip.settings import check_clip
from .._files import parsed_json, read_bytes
from .arguments import BenchmarkSettings, CompareSettings
from .benchmark_run import (
    TIMES,
    check_protocol,
    joined,
    load_categories,
    run_benchmark,
)
from .benchmark_tables import COLUMNS, as_markdown, check_comparable, compare, table
from .output import UsageError, as_usage_error, given_settings, printable, write_text
from .table import as_csv, versions


def run(settings: BenchmarkSettings | CompareSettings) -> int:
    """Run ``clipad benchmark`` or ``clipad benchmark compare``."""
    if isinstance(settings, CompareSettings):
        names = (settings.first, settings.second)
        print(compare(_read(names[0]), _read(names[1]), names), end="")
        return 0
    out = Path(settings.out)
    settings = joined(settings, out)
    with as_usage_error():
        check_protocol(settings)
        clip = check_clip(settings.clip).set_params(**given_settings(settings))
        # Without a cache times are whole, and a resumed run encodes the same batches.
        clip.set_params(embedding_cache=None)
    data = load_categories(settings)
    with as_usage_error():
        weights = load(clip).identity
    about = {"clip": clip.get_params(), "weights": weights, "versions": versions()}
    results = run_benchmark(settings, data, about, clip, out)
    write_results(results, out)
    rows = table(results)
    print(as_markdown(results, rows, ("auroc",)).rstrip())
    print(
        f"\nwrote {printable(str(out / 'results'))}.json, .csv and .md, and times.csv"
    )
    return 1 if any(row["error"] for row in rows) else 0


def write_results(results: dict[str, Any], out: Path) -> None:
    """Write all files; times apart, so that the others are the same for every run."""
    times = []
    for category, part in results["categories"].items():
        for method, found in part["methods"].items():
            measured = found.pop("times", dict.fromkeys(TIMES))
            times.append({"category": category, "method": method} | measured)
    rows = table(results)
    text = json.dumps(results | {"table": rows}, allow_nan=False)
    for name, content in (
        ("results.json", text + "\n"),
        ("results.csv", as_csv(rows, COLUMNS)),
        ("results.md", as_markdown(results, rows)),
        ("times.csv", as_csv(times, ("category", "method", *TIMES))),
    ):
        write_text(out / name, content, is_ours=True)


def _read(path: str) -> dict[str, Any]:
    if os.path.isdir(path):
        raise UsageError(f"{path}: is a folder; name the results.json in it")
    try:
        results: dict[str, Any] = parsed_json(read_bytes(path))
        check_comparable(results)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: is not the results.json of a benchmark ({error})"
        ) from error
    return results
