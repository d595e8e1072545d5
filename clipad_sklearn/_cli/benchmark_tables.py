"""Tables of finished benchmarks, and the differences between two of them."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from ..metrics import IMAGE_METRICS, PIXEL_METRICS, error_bounds
from .output import UsageError, printable

TITLES = {
    "auroc": "AUROC",
    "aupr": "AUPR",
    "f1_max": "F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupr": "pixel AUPR",
    "pixel_f1_max": "pixel F1-max",
    "pro": "PRO",
}
# At the threshold of the method, with exact intervals.
ERROR_TITLES = {"false_alarms": "false alarms", "escapes": "escapes"}


# -- what is read back -------------------------------------------------------------


def are_numbers(values: Any, *shape: int) -> bool:
    """Whether a file has numbers of that shape, all of them finite."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        return False
    is_numeric = array.dtype.kind in "iuf" and array.shape == shape
    return is_numeric and bool(np.isfinite(array).all())


def check_comparable(results: Any) -> None:
    """Raise ValueError for what `compare` cannot take for results."""
    try:
        settings = results["settings"]
        methods, n_draws = settings["methods"], settings["n_draws"]
        if not isinstance(methods, list) or not isinstance(n_draws, int) or n_draws < 1:
            raise ValueError
        for group in ("settings", "clip", "versions"):
            results.get(group, {}).items()
        for category, part in results["categories"].items():
            category.encode("utf-8", "surrogateescape")
            truth = part["data"].get("is_anomalous", [])
            for method in methods:
                found = part["methods"][method]
                if "error" not in found and not (
                    set(truth) == {0, 1}
                    and are_numbers(found["scores"], len(found["scores"]), len(truth))
                ):
                    raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("what it holds is none") from None


# -- intervals ---------------------------------------------------------------------


def bootstrap(
    is_anomalous: np.ndarray, scores: np.ndarray, n_draws: int, seed: int
) -> np.ndarray:
    """Return AUROC, AUPR and F1-max of `n_draws` resamples of the images.

    `scores` has one row per seed, over which each resample is averaged. Good and
    anomalous images are drawn apart, so that no resample lacks either. The draws
    depend on the labels and `seed` alone: those of two methods are paired.
    """
    draws = np.zeros((n_draws, 3))
    for start, counts in _resamples(is_anomalous, n_draws, seed):
        for row in scores:
            values = _weighted_metrics(is_anomalous, row, counts)
            draws[start : start + len(counts)] += values / len(scores)
    return draws


def _resamples(
    is_anomalous: np.ndarray, n_draws: int, seed: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield how often each image is drawn, for some resamples at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, 2_000_000 // len(is_anomalous))
    for start in range(0, n_draws, step):
        n = min(step, n_draws - start)
        counts = np.empty((n, len(is_anomalous)))
        for kind in (False, True):
            chosen = is_anomalous == kind
            size = int(chosen.sum())
            counts[:, chosen] = rng.multinomial(size, np.full(size, 1 / size), n)
        yield start, counts


def _weighted_metrics(
    is_anomalous: np.ndarray, scores: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.append(ranked[:-1] != ranked[1:], True)
    found, alarms = (
        np.cumsum(counts[:, order] * kind[order], axis=1)[:, last_of_ties]
        for kind in (is_anomalous, ~is_anomalous)
    )
    recall = found / found[:, -1:]
    fpr = alarms / alarms[:, -1:]
    zero = np.zeros((len(counts), 1))
    recall_0, fpr_0 = np.hstack([zero, recall]), np.hstack([zero, fpr])
    heights = (recall_0[:, 1:] + recall_0[:, :-1]) / 2
    auroc = np.sum(np.diff(fpr_0, axis=1) * heights, axis=1)
    precision = found / np.maximum(found + alarms, 1)
    aupr = np.sum(np.diff(recall_0, axis=1) * precision, axis=1)
    f1_max = np.max(2 * found / (found + alarms + found[:, -1:]), axis=1)
    return np.column_stack([auroc, aupr, f1_max])


def category_draws(results: dict[str, Any], category: str, method: str) -> np.ndarray:
    """Return the resampled image metrics of a finished pair."""
    part = results["categories"][category]
    return bootstrap(
        np.asarray(part["data"]["is_anomalous"], dtype=bool),
        np.asarray(part["methods"][method]["scores"]),
        results["settings"]["n_draws"],
        zlib.crc32(category.encode("utf-8", "surrogateescape")),
    )


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of resampled values."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


# -- tables ------------------------------------------------------------------------

_LAYOUTS = {
    "mvtec": "photos laid out as in MVTec AD",
    "visa": "photos laid out as in VisA",
    "sewer-ml": "photos laid out as in Sewer-ML",
    "folder": "a folder of photos",
}

MEAN = "mean"
COLUMNS = (
    "category",
    "method",
    "n_images",
    "n_anomalous",
    "n_seeds",
    *(
        name + suffix
        for name in IMAGE_METRICS
        for suffix in ("", "_std", "_low", "_high")
    ),
    *(name + suffix for name in PIXEL_METRICS for suffix in ("", "_std")),
    *(name + suffix for name in ERROR_TITLES for suffix in ("", "_low", "_high")),
    "error",
)


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the result table; the means over categories come last."""
    rows: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for method in results["settings"]["methods"]:
        values: dict[str, list[np.ndarray]] = {}
        draws = []
        sizes = []
        failed = 0
        truths: list[np.ndarray] = []
        above: list[np.ndarray] = []
        for category, part in results["categories"].items():
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {"category": category, "method": method}
            truth = part["data"].get("is_anomalous", [])
            if truth:
                row |= {"n_images": len(truth), "n_anomalous": sum(truth)}
            found = part["methods"][method]
            rows.append(row)
            if "error" in found:
                row["error"] = found["error"]
                failed += 1
                continue
            sizes.append((len(truth), sum(truth)))
            row["n_seeds"] = len(found["scores"])
            by_metric = {
                name: np.array([metric(truth, scores) for scores in found["scores"]])
                for name, metric in IMAGE_METRICS.items()
            }
            if found["pixels"]:
                by_metric |= {
                    name: np.array([pixels[name] for pixels in found["pixels"]])
                    for name in PIXEL_METRICS
                }
            draws.append(category_draws(results, category, method))
            _fill(row, by_metric, draws[-1])
            # Of the first seed: what one detector does, not several at once.
            truths.append(np.asarray(truth, dtype=bool))
            above.append(np.asarray(found["scores"][0]) - found["thresholds"][0])
            row |= _errors(truths[-1], above[-1])
            for name, value in by_metric.items():
                values.setdefault(name, []).append(value)
        mean: dict[str, Any] = dict.fromkeys(COLUMNS)
        mean |= {"category": MEAN, "method": method}
        if failed:
            mean["error"] = f"{failed} of {failed + len(sizes)} categories failed"
        if sizes:
            mean["n_images"], mean["n_anomalous"] = map(sum, zip(*sizes, strict=True))
            mean["n_seeds"] = len(values["auroc"][0])
            of_seeds = {name: np.mean(value, axis=0) for name, value in values.items()}
            _fill(mean, of_seeds, np.mean(draws, axis=0))
            mean |= _errors(np.concatenate(truths), np.concatenate(above))
        means.append(mean)
    rows.sort(key=lambda row: list(results["categories"]).index(row["category"]))
    return rows + means


def _errors(is_anomalous: np.ndarray, above: np.ndarray) -> dict[str, float]:
    """Return false alarms and escapes; what is above 0 was called anomalous."""
    rates = error_bounds(is_anomalous, -above, 0.0)
    values: dict[str, float] = {}
    for name, found in zip(ERROR_TITLES, rates, strict=True):
        values |= {
            name: found.rate,
            f"{name}_low": found.low,
            f"{name}_high": found.high,
        }
    return values


def _fill(
    row: dict[str, Any], by_metric: dict[str, np.ndarray], draws: np.ndarray
) -> None:
    for name, value in by_metric.items():
        row[name] = float(np.mean(value))
        row[f"{name}_std"] = float(np.std(value, ddof=1)) if len(value) > 1 else None
    for column, name in enumerate(IMAGE_METRICS):
        row[f"{name}_low"], row[f"{name}_high"] = interval(draws[:, column])


def as_markdown(
    results: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    by_category: Collection[str] | None = None,
) -> str:
    """Return the result tables to read: by category, then the means.

    `by_category` names the metrics that are listed by category (None: all).
    """
    settings = results["settings"]
    known = "known" if settings["known_object"] else "unknown"
    titles = {**TITLES, **ERROR_TITLES}
    columns = [name for name in titles if any(row[name] is not None for row in rows)]
    categories = list(results["categories"])
    rate = settings["max_false_alarm"]
    threshold = (
        "the method's own threshold (uncalibrated for methods that use words only)"
        if rate is None
        else f"a threshold set for at most {100 * rate:g} % false alarms, from good "
        "training photos"
    )
    lines = [
        f"# Benchmark: {_LAYOUTS[settings['data']]}, {known} object",
        "",
        f"CLIP: {_cell(results['clip']['model_name'])}"
        + (f", {_cell(p)}" if (p := results["clip"]["pretrained"]) else "")
        + f"; weights {results['weights'][:12]}.",
        f"Categories: {len(categories)}. Methods with a seed: mean ± standard "
        f"deviation of {settings['n_seeds']} seeds. In brackets: 95 % interval of "
        f"{settings['n_draws']} resamples of the images. In per cent.",
        f"False alarms and escapes: the first seed at {threshold}. In brackets: exact "
        "95 % interval; over all categories that of all their photos.",
        "",
    ]
    by_pair = {(row["category"], row["method"]): row for row in rows}
    for name in columns:
        if by_category is not None and name not in by_category:
            continue
        lines += [
            f"## {titles[name]} by category",
            "",
            *_markdown(
                ["category", *settings["methods"]],
                [
                    [c, *(_value(by_pair[c, m], name) for m in settings["methods"])]
                    for c in categories
                ],
            ),
            "",
        ]
    lines += [
        "## Means over categories",
        "",
        *_markdown(
            ["method", *(titles[name] for name in columns)],
            [
                [m, *(_value(by_pair[MEAN, m], name) for name in columns)]
                for m in settings["methods"]
            ],
        ),
        "",
    ]
    failures = [row for row in rows if row["error"] and row["category"] != MEAN]
    if failures:
        lines += ["## Failures", ""]
        lines += _markdown(
            ["category", "method", "error"],
            [[row["category"], row["method"], row["error"]] for row in failures],
        )
        lines += [""]
    return "\n".join(lines)


def _value(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "failed" if row["error"] and name == "auroc" else ""
    text = f"{100 * row[name]:.1f}"
    if row.get(f"{name}_std") is not None:
        text += f" ± {100 * row[f'{name}_std']:.1f}"
    if f"{name}_low" in row:
        text += f" [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
    return text


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]


def _cell(text: Any) -> str:
    # A name must not end its cell or become a tag.
    return printable(str(text)).replace("|", "\\|").replace("<", "&lt;")


# -- comparing ---------------------------------------------------------------------


def compare(a: dict[str, Any], b: dict[str, Any], names: Sequence[str]) -> str:
    """Return how b differs from a, with intervals of the paired differences.

    `names` say what the two are called.
    """
    body: list[list[str]] = []
    means: list[list[str]] = []
    remarks: list[str] = []
    methods = [m for m in a["settings"]["methods"] if m in b["settings"]["methods"]]
    for method in methods:
        everywhere = []
        of_method: list[list[str]] = []
        for category, part in a["categories"].items():
            other = b["categories"].get(category)
            if other is None:
                continue
            if part["data"] != other["data"]:
                remarks.append(f"{category}: left out, the images are not the same.")
                continue
            first, second = part["methods"][method], other["methods"][method]
            if "error" in first or "error" in second:
                remarks.append(f"{category}, {method}: left out, it failed.")
                continue
            truth = part["data"]["is_anomalous"]
            values = np.array(
                [
                    [
                        np.mean([f(truth, s) for s in x["scores"]])
                        for x in (first, second)
                    ]
                    for f in IMAGE_METRICS.values()
                ]
            )
            draws = _draws_as(a, b, category, method) - category_draws(
                a, category, method
            )
            everywhere.append((values, draws))
            of_method.append(_difference(category, method, values, draws))
        if everywhere:
            values, draws = (np.mean(x, axis=0) for x in zip(*everywhere, strict=True))
            body += of_method
            means.append(_difference(MEAN, method, values, draws))
    if not body:
        raise UsageError(
            "the two have no method and category in common that can be compared"
            + "".join(f"; {remark}" for remark in dict.fromkeys(remarks))
        )
    remarks += _only_in_one(a, b)
    titles = [TITLES[name] for name in IMAGE_METRICS]
    return "\n".join(
        [
            f"First: {printable(names[0])}",
            f"Second: {printable(names[1])}",
            *_different_settings(a, b),
            "",
            "First, second, and second minus first with its 95 % interval over paired "
            "resamples of the images; * where this leaves out 0. In per cent.",
            "",
            *_markdown(["category", "method", *titles], body),
            "",
            "Means over these categories:",
            "",
            *_markdown(["category", "method", *titles], means),
            *(["", *map(printable, dict.fromkeys(remarks))] if remarks else []),
            "",
        ]
    )


def _only_in_one(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Say which categories and methods cannot be compared, as one has none."""
    of_both = [
        [f"category {name}" for name in results["categories"]]
        + [f"method {name}" for name in results["settings"]["methods"]]
        for results in (a, b)
    ]
    return [
        f"{name}: left out, only the {which} has it."
        for which, names, others in (
            ("first", of_both[0], of_both[1]),
            ("second", of_both[1], of_both[0]),
        )
        for name in names
        if name not in others
    ]


def _different_settings(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return a line for everything that was not the same for both."""
    lines = []
    for group in ("settings", "clip", "versions"):
        first, second = a.get(group, {}), b.get(group, {})
        lines += [
            printable(f"{name}: {first.get(name)}, then {second.get(name)}")
            for name in dict.fromkeys([*first, *second])
            if first.get(name) != second.get(name)
        ]
    if a.get("weights") != b.get("weights"):
        lines.append("other weights of CLIP")
    return ["Different:", *(f"  {line}" for line in lines)] if lines else []


def _draws_as(
    a: dict[str, Any], b: dict[str, Any], category: str, method: str
) -> np.ndarray:
    """Return the resampled metrics of b for the resamples of a."""
    settings = b["settings"] | {"n_draws": a["settings"]["n_draws"]}
    return category_draws(b | {"settings": settings}, category, method)


def _difference(
    category: str, method: str, values: np.ndarray, draws: np.ndarray
) -> list[str]:
    cells = [category, method]
    for (first, second), column in zip(values, draws.T, strict=True):
        low, high = interval(column)
        star = " *" if low > 0 or high < 0 else ""
        cells.append(
            f"{100 * first:.1f}, {100 * second:.1f}: {100 * (second - first):+.1f} "
            f"[{100 * low:+.1f}, {100 * high:+.1f}]{star}"
        )
    return cells
