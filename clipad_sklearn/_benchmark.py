"""Benchmarks: every method on every category, with intervals, safe when killed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from . import metrics
from ._cli_output import UsageError, printable, replacing
from ._clip import OpenCLIP
from ._fusion_detector import FusionDetector
from ._prompt_detector import PromptDetector
from ._random_word_detector import RandomWordDetector
from .datasets import (
    load_image_folder,
    load_mvtec_ad,
    load_sewer_ml,
    load_visa,
    make_defect_images,
)

IMAGE_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "auroc": metrics.auroc,
    "aupr": metrics.aupr,
    "f1_max": metrics.f1_max,
}
PIXEL_METRICS: dict[str, Callable[[Any, Any], float]] = {
    "pixel_auroc": metrics.auroc,
    "pixel_aupr": metrics.aupr,
    "pixel_f1_max": metrics.f1_max,
    "pro": metrics.pro,
}
TITLES = {
    "auroc": "AUROC",
    "aupr": "AUPR",
    "f1_max": "F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_aupr": "pixel AUPR",
    "pixel_f1_max": "pixel F1-max",
    "pro": "PRO",
}
# What needs a seed, and what takes images instead of embeddings.
_SEEDED = ("random-word", "fusion", "winclip-random-word", "sdp-plus")
_ON_IMAGES = ("winclip", "winclip-random-word", "sdp", "sdp-plus")

# The layers of SDP+ are trained on so many generated images.
_N_AUXILIARY = 200
_LONGEST_REASON = 1000
_MASK_FOLDERS = ("ground_truth", "masks")


@dataclass(frozen=True)
class Settings:
    """What a benchmark is about; the same settings give the same results."""

    data: str
    root: str
    categories: tuple[str, ...] | None
    methods: tuple[str, ...]
    known_object: bool
    n_seeds: int
    n_pairs: int
    n_draws: int


# -- methods -----------------------------------------------------------------------


def new_method(
    name: str, clip: OpenCLIP, class_name: str | None, seed: int, n_pairs: int
) -> Any:
    """Return a fitted detector, on embeddings or on images."""
    told = class_name or "object"

    def words() -> RandomWordDetector:
        return RandomWordDetector(
            clip, class_name=class_name, n_pairs=n_pairs, random_state=seed
        )

    if name == "clip-ac":
        return PromptDetector(clip, prompts="clip-ac", class_name=told).fit()
    if name == "prompt":
        return PromptDetector(clip, class_name=told).fit()
    if name == "random-word":
        return words().fit()
    if name == "fusion":
        prompts = PromptDetector(clip, class_name=told)
        return FusionDetector([("words", words()), ("prompts", prompts)]).fit()
    if name.startswith("winclip"):
        from ._winclip_detector import WinCLIPDetector

        prompts = PromptDetector(clip, class_name=told)
        scorer = prompts if name == "winclip" else words()
        return WinCLIPDetector(clip, scorer=scorer).fit()
    if name == "sdp":
        from ._sdp_detector import SDPDetector

        return SDPDetector(clip, class_name=told).fit()
    from ._sdp_plus_detector import SDPPlusDetector

    # Other images than those of a benchmark on generated images with small seeds.
    auxiliary = make_defect_images(_N_AUXILIARY, random_state=10**6 + seed)
    detector = SDPPlusDetector(clip, class_name=told, random_state=seed)
    return detector.fit(auxiliary.images, auxiliary.masks)


# -- data --------------------------------------------------------------------------


def category_names(settings: Settings) -> list[str]:
    """Return the categories to go through, in order."""
    if not os.path.isdir(settings.root):
        raise UsageError(f"--root {settings.root}: no such folder")
    if settings.data == "sewer-ml":
        if settings.categories is not None:
            raise UsageError("--categories: Sewer-ML has only one")
        return ["sewer pipe"]
    if settings.categories is not None:
        return list(settings.categories)
    if settings.data == "folder":
        return ["."]
    names = sorted(
        entry.name
        for entry in os.scandir(settings.root)
        if entry.is_dir() and not entry.name.startswith((".", "split_csv"))
    )
    if not names:
        raise UsageError(f"--root {settings.root}: has no folder of a category")
    return names


def load_category(settings: Settings, category: str) -> Bunch:
    """List the images of one category."""
    if settings.data == "mvtec":
        return load_mvtec_ad(settings.root, category)
    if settings.data == "visa":
        return load_visa(settings.root, category)
    if settings.data == "sewer-ml":
        return load_sewer_ml(settings.root)
    folder = os.path.normpath(os.path.join(settings.root, category))
    masks = (os.path.join(folder, name) for name in _MASK_FOLDERS)
    return load_image_folder(
        folder, mask_folder=next((path for path in masks if os.path.isdir(path)), None)
    )


def _class_name(settings: Settings, category: str) -> str | None:
    if not settings.known_object:
        return None
    if category == ".":
        category = os.path.basename(os.path.abspath(settings.root))
    return category.rpartition("/")[2].replace("_", " ")


def _fingerprint(data: Bunch) -> str:
    """Return what changes when images are added, removed, labelled or written anew."""
    digest = hashlib.sha256()
    masks = data.masks or [None] * len(data.images)
    for image, target, mask in zip(data.images, data.target, masks, strict=True):
        for path in (image, mask):
            if path is not None:
                status = os.stat(path)
                line = f"{path}\0{target}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_mask(mask: str, image: str, size: tuple[int, int]) -> np.ndarray:
    """Read a mask, and reduce it to (height, width) by taking the nearest pixels."""
    from PIL import Image

    try:
        with Image.open(mask) as opened, Image.open(image) as photo:
            width, height = photo.size
            # From 5 on, EXIF turns the image on its side.
            if photo.getexif().get(0x0112, 1) >= 5:
                width, height = height, width
            if opened.size != (width, height):
                raise ValueError(
                    f"the mask {mask} has {opened.width} x {opened.height} pixels, but "
                    f"its image {width} x {height}"
                )
            pixels = np.asarray(opened)
    except OSError as error:
        raise ValueError(f"the mask {mask} cannot be read: {error}") from error
    if pixels.ndim == 3:
        pixels = pixels[..., :3].max(axis=2)
    reduced = Image.fromarray((pixels > 0).astype(np.uint8))
    return np.asarray(reduced.resize(size[::-1], Image.Resampling.NEAREST)) > 0


# -- one method on one category ----------------------------------------------------


class PeakMemory:
    """Largest memory of the process since `start`, on Linux, and of the GPU."""

    def start(self) -> None:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
            self.known = True
        except OSError:
            self.known = False
        if self._cuda():
            self._cuda().reset_peak_memory_stats()

    def megabytes(self) -> float | None:
        if not self.known:
            return None
        status = Path("/proc/self/status").read_text()
        peak = re.search(r"VmHWM:\s*(\d+) kB", status)
        gpu = self._cuda().max_memory_allocated() / 2**20 if self._cuda() else 0
        return int(peak.group(1)) / 1024 + gpu if peak else None

    @staticmethod
    def _cuda() -> Any:
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return None
        return torch.cuda


class Runner:
    """Runs methods on categories, and keeps what it needs more than once."""

    def __init__(self, settings: Settings, clip: OpenCLIP) -> None:
        self.settings = settings
        self.clip = clip
        self.memory = PeakMemory()
        self._detectors: dict[tuple[Any, ...], tuple[Any, float]] = {}
        self._embeddings: tuple[str, np.ndarray, float, float] | None = None

    def run(self, category: str, method: str, data: Bunch) -> dict[str, Any]:
        """Return scores, pixel metrics, times and peak memory."""
        n_seeds = self.settings.n_seeds if method in _SEEDED else 1
        on_images = method in _ON_IMAGES
        masks = data.masks if on_images else None
        class_name = _class_name(self.settings, category)
        images, encode_s, encode_mb = data.images, 0.0, 0.0
        if not on_images:
            images, encode_s, encode_mb = self._encoded(category, data.images)
        scores: list[list[float]] = []
        pixels: list[dict[str, float]] = []
        fit_s = score_s = map_s = 0.0
        self.memory.start()
        for seed in range(n_seeds):
            detector, seconds = self._fitted(method, class_name, seed)
            fit_s += seconds
            start = time.perf_counter()
            scores.append((-detector.score_samples(images)).tolist())
            score_s += time.perf_counter() - start
            if masks is not None:
                start = time.perf_counter()
                maps = list(detector.iter_anomaly_maps(images, size="model"))
                map_s += time.perf_counter() - start
                truth = [
                    None if mask is None else read_mask(mask, image, maps[0].shape)
                    for mask, image in zip(masks, images, strict=True)
                ]
                pixels.append({n: f(truth, maps) for n, f in PIXEL_METRICS.items()})
        peak = self.memory.megabytes()
        n_images = len(data.images)
        map_ms = 1e3 * map_s / n_seeds / n_images
        return {
            "scores": scores,
            "pixels": pixels,
            "times": {
                "fit_s": fit_s / n_seeds,
                "score_ms_per_image": 1e3 * (encode_s + score_s / n_seeds) / n_images,
                "map_ms_per_image": map_ms if pixels else None,
                "peak_mb": None if peak is None else max(peak, encode_mb),
            },
        }

    def _encoded(
        self, category: str, images: list[str]
    ) -> tuple[np.ndarray, float, float]:
        if self._embeddings is None or self._embeddings[0] != category:
            self.memory.start()
            start = time.perf_counter()
            embeddings = self.clip.encode_image(images)
            seconds = time.perf_counter() - start
            peak = self.memory.megabytes() or 0.0
            self._embeddings = (category, embeddings, seconds, peak)
        return self._embeddings[1:]

    def _fitted(
        self, method: str, class_name: str | None, seed: int
    ) -> tuple[Any, float]:
        """Return a detector, and the seconds that it took to fit."""
        key = (method, class_name, seed)
        if key not in self._detectors:
            if class_name is not None:
                self._detectors.clear()  # they served other categories
            start = time.perf_counter()
            detector = new_method(
                method, self.clip, class_name, seed, self.settings.n_pairs
            )
            self._detectors[key] = detector, time.perf_counter() - start
        return self._detectors[key]


# -- all of them -------------------------------------------------------------------


def run_benchmark(
    settings: Settings, about: dict[str, Any], clip: OpenCLIP, out: Path
) -> dict[str, Any]:
    """Run what is not finished in the folder `out`, and return all results.

    `about` is what else decides the results, such as versions and weights. Every
    finished pair of a category and a method is a file, which a later run takes over.
    """
    names = category_names(settings)
    described = json.loads(json.dumps({"settings": asdict(settings), **about}))
    _claim(out, described)
    runner = Runner(settings, clip)
    total = len(names) * len(settings.methods)
    parts: dict[str, dict[str, Any]] = {}
    for category in names:
        try:
            data = load_category(settings, category)
            fingerprint = _fingerprint(data)
            loaded: dict[str, Any] = {
                "images": [
                    Path(os.path.relpath(path, settings.root)).as_posix()
                    for path in data.images
                ],
                "is_anomalous": (data.target == -1).astype(int).tolist(),
            }
            if len(set(loaded["is_anomalous"])) < 2:
                raise ValueError("needs both good and anomalous images")
            failure = None
        except (OSError, ValueError) as error:
            loaded, fingerprint, failure = {}, "", _reason(error)
        parts[category] = {"data": loaded, "methods": {}}
        for method in settings.methods:
            done = sum(len(part["methods"]) for part in parts.values())
            where = f"[{done + 1}/{total}] {category}, {method}"
            path = out / "parts" / _file_name(category, method)
            part = None if failure else _finished(path, fingerprint)
            if part is not None:
                _say(f"{where}: already there")
            elif failure:
                part = {"error": failure}
                _say(f"{where}: {failure}")
            else:
                try:
                    part = runner.run(category, method, data)
                    _write(path, part | {"fingerprint": fingerprint})
                    auroc = np.mean(
                        [
                            metrics.auroc(loaded["is_anomalous"], scores)
                            for scores in part["scores"]
                        ]
                    )
                    _say(f"{where}: AUROC {100 * auroc:.1f}")
                except Exception as error:  # a row with its error, never a lost run
                    part = {"error": _reason(error)}
                    _say(f"{where}: {part['error']}")
            part.pop("fingerprint", None)
            parts[category]["methods"][method] = part
    return described | {"categories": parts}


def _claim(out: Path, described: dict[str, Any]) -> None:
    """Make the folder, or check that it is of a run with the same settings."""
    path = out / "settings.json"
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            raise UsageError(f"{path}: is not of a benchmark") from None
        if found != described:
            differing = sorted(
                name
                for name in {*found, *described}
                if found.get(name) != described.get(name)
            )
            inner = "settings" in differing and ", ".join(
                f"{name}: {found['settings'].get(name)!r} there, {value!r} now"
                for name, value in described["settings"].items()
                if found.get("settings", {}).get(name) != value
            )
            raise UsageError(
                f"{out} holds a benchmark with other {', '.join(differing)}"
                + (f" ({inner})" if inner else "")
                + "; name another folder with --out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is not empty and not of a benchmark")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    for leftover in out.rglob("*.tmp"):  # of a run that was killed
        leftover.unlink()
    _write(path, described)


def _finished(path: Path, fingerprint: str) -> dict[str, Any] | None:
    try:
        part = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return part if part.get("fingerprint") == fingerprint else None


def _file_name(category: str, method: str) -> str:
    # The number tells names apart that look alike without their special letters.
    number = zlib.crc32(category.encode("utf-8", "surrogateescape"))
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", category)[:40]
    return f"{plain}-{number:08x}-{method}.json"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # All images of a folder may be unreadable, and each is named.
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _say(message: str) -> None:
    print(f"clipad: {printable(message)}", file=sys.stderr)


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file in one go."""
    with replacing(str(path)) as temporary, open(temporary, "wb") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


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
    "error",
)


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the result table; the means over categories come first."""
    rows: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for method in results["settings"]["methods"]:
        values: dict[str, list[np.ndarray]] = {}
        draws = []
        sizes = []
        failed = 0
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
        means.append(mean)
    rows.sort(key=lambda row: list(results["categories"]).index(row["category"]))
    return means + rows


def _fill(
    row: dict[str, Any], by_metric: dict[str, np.ndarray], draws: np.ndarray
) -> None:
    for name, value in by_metric.items():
        row[name] = float(np.mean(value))
        row[f"{name}_std"] = float(np.std(value, ddof=1)) if len(value) > 1 else None
    for column, name in enumerate(IMAGE_METRICS):
        row[f"{name}_low"], row[f"{name}_high"] = interval(draws[:, column])


def as_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return rows as CSV."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(
        buffer, columns, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC
    )
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_markdown(results: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Return the result table to read."""
    settings = results["settings"]
    known = "known" if settings["known_object"] else "unknown"
    columns = [
        name
        for name in (*IMAGE_METRICS, *PIXEL_METRICS)
        if any(row[name] is not None for row in rows)
    ]
    categories = list(results["categories"])
    lines = [
        f"# Benchmark: {settings['data']}, {known} object",
        "",
        f"CLIP: {_cell(results['clip']['model_name'])}"
        + (f", {_cell(p)}" if (p := results["clip"]["pretrained"]) else "")
        + f"; weights {results['weights'][:12]}.",
        f"{len(categories)} categories; methods with a seed: mean ± standard deviation "
        f"of {settings['n_seeds']} seeds. In brackets: 95 % interval of "
        f"{settings['n_draws']} resamples of the images. In per cent.",
        "",
        *_markdown(
            ["method", *(TITLES[name] for name in columns)],
            [
                [row["method"], *(_value(row, name) for name in columns)]
                for row in rows
                if row["category"] == MEAN
            ],
        ),
        "",
    ]
    for name in columns:
        by_pair = {(row["category"], row["method"]): row for row in rows}
        lines += [
            f"## {TITLES[name]} by category",
            "",
            *_markdown(
                ["category", *settings["methods"]],
                [
                    [c, *(_value(by_pair[c, m], name) for m in settings["methods"])]
                    for c in [*categories, MEAN]
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
    if row[f"{name}_std"] is not None:
        text += f" ± {100 * row[f'{name}_std']:.1f}"
    if name in IMAGE_METRICS:
        text += f" [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
    return text


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]


def _cell(text: Any) -> str:
    # A name must not end its cell or become a tag.
    return printable(str(text)).replace("|", "\\|").replace("<", "&lt;")


# -- comparing ---------------------------------------------------------------------


def compare(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return how b differs from a, with intervals of the paired differences."""
    body: list[list[str]] = []
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
            body.append(_difference(MEAN, method, values, draws))
            if len(everywhere) > 1:
                body += of_method
            else:
                body[-1][0] = of_method[0][0]
    if not body:
        raise UsageError(
            "the two have no method and category in common that can be compared"
            + "".join(f"; {remark}" for remark in dict.fromkeys(remarks))
        )
    titles = [TITLES[name] for name in IMAGE_METRICS]
    return "\n".join(
        [
            "First, second, and second minus first with its 95 % interval over paired "
            "resamples of the images; * where this leaves out 0. In per cent.",
            "",
            *_markdown(["category", "method", *titles], body),
            *(["", *dict.fromkeys(remarks)] if remarks else []),
            "",
        ]
    )


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
