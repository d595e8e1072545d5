"""Benchmarks: every method on every category, safe when killed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .. import metrics
from .._clip.settings import OpenCLIP
from .._detectors.calibration import calibrate_threshold
from .._files import UNFINISHED, error_words, is_folder, parsed_json, read_bytes
from .._images import image_size
from .._masks import mask_pixels, resized_mask
from .._prompts import check_prompts, random_word_prompts
from ..datasets import load_image_folder, load_mvtec_ad, load_sewer_ml, load_visa
from ..metrics import PIXEL_METRICS
from .arguments import BenchmarkSettings
from .benchmark_tables import are_numbers
from .methods import Choices, Method, fitted_detector, method_and_shots
from .output import UsageError, say, write_text

TIMES = ("fit_s", "score_ms_per_image", "map_ms_per_image", "peak_mb")
_LONGEST_REASON = 1000
_MASK_FOLDERS = ("ground_truth", "masks")


# -- data --------------------------------------------------------------------------


def category_names(settings: BenchmarkSettings) -> list[str]:
    """Return the categories to go through, in order."""
    if not os.path.isdir(settings.root):
        raise UsageError(f"--root {settings.root}: no such folder")
    if settings.data == "sewer-ml":
        if settings.categories is not None:
            raise UsageError("--categories: Sewer-ML has only one")
        return ["sewer pipe"]
    if settings.categories is not None:
        missing = [
            name
            for name in settings.categories
            if not os.path.isdir(os.path.join(settings.root, name))
        ]
        if missing:
            raise UsageError(
                f"--categories: {settings.root} has no folder "
                f"{', '.join(map(repr, missing))}; there are: "
                + (", ".join(_folders(settings.root)) or "none")
            )
        return list(settings.categories)
    parts = [os.path.join(settings.root, part, "good") for part in ("train", "test")]
    has_kinds = os.path.isdir(os.path.join(settings.root, "good"))
    if any(map(os.path.isdir, parts)) and not has_kinds:
        folder, name = os.path.split(os.path.abspath(settings.root))
        data = "mvtec" if settings.data == "folder" else settings.data
        raise UsageError(
            f"--root {settings.root}: is the folder of one category; write "
            f"--data {data} --root {folder} --categories {name}"
        )
    if settings.data == "folder":
        return ["."]
    names = _folders(settings.root)
    if not names:
        raise UsageError(f"--root {settings.root}: has no folder of a category")
    return names


def _folders(root: str) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(root)
        if is_folder(entry)
        and not entry.name.startswith((".", "split_csv"))
        and not _is_benchmark(entry.path)
    )


def _is_benchmark(folder: str) -> bool:
    """Whether a folder among the categories is one that a benchmark wrote."""
    return os.path.isfile(os.path.join(folder, "settings.json")) and os.path.isdir(
        os.path.join(folder, "parts")
    )


def load_categories(settings: BenchmarkSettings) -> dict[str, Bunch | str]:
    """List the images of all categories; what cannot be listed has the reason.

    Raises UsageError for one that was asked for by name, and where none is left.
    """
    loaded: dict[str, Bunch | str] = {}
    for name in category_names(settings):
        try:
            data = load_category(settings, name)
            if len(set(data.target.tolist())) < 2:
                raise ValueError("needs both good and anomalous images")
            loaded[name] = data
        except (OSError, ValueError) as error:
            loaded[name] = _reason(error)
    reasons = {name: what for name, what in loaded.items() if isinstance(what, str)}
    if reasons and (settings.categories or len(reasons) == len(loaded)):
        name, reason = next(iter(reasons.items()))
        where = f"--root {settings.root}"
        if settings.categories is not None:
            where = f"--categories {name}"
        raise UsageError(
            f"{where}: {reason} (`clipad benchmark --help` shows the layouts of --root)"
        )
    return loaded


def load_category(settings: BenchmarkSettings, category: str) -> Bunch:
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


def load_good(settings: BenchmarkSettings, category: str) -> list[str]:
    """List the training photos of one category, which are good."""
    load = load_mvtec_ad if settings.data == "mvtec" else load_visa
    images: list[str] = load(settings.root, category, split="train").images
    return images


def _class_name(settings: BenchmarkSettings, category: str) -> str | None:
    if not settings.known_object:
        return None
    if category == ".":
        category = os.path.basename(os.path.abspath(settings.root))
    return category.rpartition("/")[2].replace("_", " ")


def _fingerprint(data: Bunch, training: Sequence[str]) -> str:
    """Return what changes when images are added, removed, relabelled or rewritten."""
    digest = hashlib.sha256()
    masks = data.masks or [None] * len(data.images)
    tested = zip(data.images, data.target, masks, strict=True)
    for image, target, mask in [*tested, *((path, "", None) for path in training)]:
        for path in (image, mask):
            if path is not None:
                status = os.stat(path)
                line = f"{path}\0{target}\0{status.st_size}\0{status.st_mtime_ns}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def read_mask(mask: str, image: str, size: tuple[int, int]) -> np.ndarray:
    """Read a mask, and reduce it to (height, width) by taking the nearest pixels."""
    try:
        pixels = mask_pixels(mask)
    except ValueError as error:
        raise ValueError(f"the mask {mask} cannot be read: {error}") from error
    height, width = image_size(image)
    if pixels.shape != (height, width):
        raise ValueError(
            f"the mask {mask} has {pixels.shape[1]} x {pixels.shape[0]} pixels, but "
            f"its image {width} x {height}"
        )
    return resized_mask(pixels, size, "nearest")


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

    def __init__(self, settings: BenchmarkSettings, clip: OpenCLIP) -> None:
        self.settings = settings
        self.clip = clip
        self.memory = PeakMemory()
        self._detectors: dict[tuple[Any, ...], tuple[Any, float]] = {}
        self._embeddings: dict[tuple[str, ...], tuple[np.ndarray, float, float]] = {}

    def training(self, category: str, method: str) -> list[str]:
        """Return the good photos of the training split that a method makes use of."""
        _, shots = method_and_shots(method)
        if shots is None and self.settings.max_false_alarm is None:
            return []
        return load_good(self.settings, category)

    def n_seeds(self, method: str) -> int:
        """Return how often a method is run."""
        return self.settings.n_seeds if method_and_shots(method)[0].seeded else 1

    def run(
        self, category: str, method: str, data: Bunch, training: list[str]
    ) -> dict[str, Any]:
        """Return scores, thresholds, pixel metrics, times and peak memory."""
        kind, shots = method_and_shots(method)
        n_seeds = self.n_seeds(method)
        on_images = kind.on_images
        masks = data.masks if on_images else None
        class_name = _class_name(self.settings, category)
        images, encode_s, encode_mb = data.images, 0.0, 0.0
        if not on_images:
            images, encode_s, encode_mb = self._encoded(data.images)
        scores: list[list[float]] = []
        thresholds: list[float] = []
        pixels: list[dict[str, float]] = []
        fit_s = score_s = map_s = 0.0
        self.memory.start()
        for seed in range(n_seeds):
            drawn = _drawn(training, shots, seed) if shots is not None else []
            photos = drawn or data.images
            detector, seconds = self._fitted(method, class_name, seed, photos)
            fit_s += seconds
            if (share := self.settings.max_false_alarm) is not None:
                taken = set(drawn)
                good = [path for path in training if path not in taken]
                self._calibrate(detector, kind, good, share)
            # Of anomaly scores, which are higher for anomalies.
            thresholds.append(-float(detector.offset_))
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
            "thresholds": thresholds,
            "pixels": pixels,
            "times": {
                "fit_s": fit_s / n_seeds,
                "score_ms_per_image": 1e3 * (encode_s + score_s / n_seeds) / n_images,
                "map_ms_per_image": map_ms if pixels else None,
                "peak_mb": None if peak is None else max(peak, encode_mb),
            },
        }

    def _encoded(self, images: list[str]) -> tuple[np.ndarray, float, float]:
        key = tuple(images)
        if key not in self._embeddings:
            if len(self._embeddings) > 1:  # the photos to test, and good ones
                self._embeddings.clear()
            self.memory.start()
            start = time.perf_counter()
            embeddings = self.clip.encode_image(images)
            seconds = time.perf_counter() - start
            peak = self.memory.megabytes() or 0.0
            self._embeddings[key] = (embeddings, seconds, peak)
        return self._embeddings[key]

    def _calibrate(
        self, detector: Any, kind: Method, good: list[str], share: float
    ) -> None:
        """Set the threshold from good photos that the detector did not learn from."""
        if not good:
            raise ValueError("has no training photo left to set the threshold from")
        inputs: Any = good if kind.on_images else self._encoded(good)[0]
        calibrate_threshold(
            detector, inputs, strategy="max_false_alarm", max_false_alarm=share
        )

    def _fitted(
        self, method: str, class_name: str | None, seed: int, photos: list[str]
    ) -> tuple[Any, float]:
        """Return a detector, and the seconds that it took to fit."""
        kind, shots = method_and_shots(method)
        if method == "mutual" or shots is not None:
            start = time.perf_counter()
            choices = Choices(random_state=seed)
            detector = kind.make(self.clip, choices).fit(photos)
            return detector, time.perf_counter() - start
        key = (method, class_name, seed)
        if key not in self._detectors:
            if class_name is not None:
                self._detectors.clear()  # they served other categories
            start = time.perf_counter()
            choices = choices_of(self.settings, class_name, seed)
            detector = fitted_detector(method, self.clip, choices)
            self._detectors[key] = detector, time.perf_counter() - start
        return self._detectors[key]


def choices_of(
    settings: BenchmarkSettings, class_name: str | None, seed: int
) -> Choices:
    """Return what the protocol asks of a method."""
    return Choices(
        class_name,
        seed,
        settings.n_pairs,
        preset=settings.prompts,
        templates=settings.templates,
        normal=settings.normal,
        anomalous=settings.anomalous,
        words=settings.words,
        fusion=settings.of_fusion,
    )


def _drawn(photos: list[str], n: int, seed: int) -> list[str]:
    if len(photos) < n:
        raise ValueError(f"has {len(photos)} training photos, but --shots asks for {n}")
    rng = np.random.default_rng(seed)
    return [photos[i] for i in sorted(rng.choice(len(photos), n, replace=False))]


def check_protocol(settings: BenchmarkSettings) -> None:
    """Raise ValueError for prompts that cannot be made, before anything runs."""
    if settings.prompts is not None:
        check_prompts(settings.prompts)
    choices = choices_of(settings, None, 0)
    choices.prompts("winclip")
    words = choices.random_words()
    words.pop("center", None)
    random_word_prompts(1, **words)
    if settings.fusion_weights is not None:
        if settings.fusion == "max":
            raise ValueError("--fusion max takes no --fusion-weights")
        if not any(settings.fusion_weights):
            raise ValueError("--fusion-weights: one must be above 0")


# -- all of them -------------------------------------------------------------------


def joined(settings: BenchmarkSettings, out: Path) -> BenchmarkSettings:
    """Return the settings with the methods and categories that `out` already has."""
    found = _settings_of(out)
    if found is None:
        return settings
    there = found["settings"]
    methods = tuple(dict.fromkeys([*there["methods"], *settings.methods]))
    categories = None
    if there["categories"] is not None and settings.categories is not None:
        names = [*there["categories"], *settings.categories]
        categories = tuple(dict.fromkeys(names))
    return replace(settings, methods=methods, categories=categories)


def run_benchmark(
    settings: BenchmarkSettings,
    data: dict[str, Bunch | str],
    about: dict[str, Any],
    clip: OpenCLIP,
    out: Path,
) -> dict[str, Any]:
    """Run what is not finished in the folder `out`, and return all results.

    `data` is that of `load_categories`; `about` is what else decides the results, such
    as versions and weights. Every finished pair of a category and a method is a file,
    which a later run takes over.
    """
    decisive = asdict(settings)
    for name in ("out", "clip", "device", "batch_size"):
        del decisive[name]  # these are in `about`, or decide nothing
    described = json.loads(json.dumps({"settings": decisive, **about}))
    _claim(out, described)
    runner = Runner(settings, clip)
    total = len(data) * len(settings.methods)
    parts: dict[str, dict[str, Any]] = {}
    done = 0
    for category, listed in data.items():
        parts[category] = {"data": _described(settings, listed), "methods": {}}
        for method in settings.methods:
            done += 1
            where = f"[{done}/{total}] {category}, {method}"
            path = out / "parts" / _file_name(category, method)
            part, said = _part(runner, category, method, listed, path)
            say(f"{where}: {said}")
            parts[category]["methods"][method] = part
    return described | {"categories": parts}


def _described(settings: BenchmarkSettings, listed: Bunch | str) -> dict[str, Any]:
    """Return what the results keep of the images."""
    if isinstance(listed, str):
        return {}
    images = [os.path.relpath(path, settings.root) for path in listed.images]
    return {
        "images": [Path(path).as_posix() for path in images],
        "is_anomalous": (listed.target == -1).astype(int).tolist(),
    }


def _part(
    runner: Runner, category: str, method: str, listed: Bunch | str, path: Path
) -> tuple[dict[str, Any], str]:
    """Return the results of one pair, from its file if finished, and a remark."""
    if isinstance(listed, str):
        return {"error": listed}, listed
    try:
        training = runner.training(category, method)
        fingerprint = _fingerprint(listed, training)
        shape = (runner.n_seeds(method), len(listed.images))
        part = _finished(path, fingerprint, shape)
        said = "already there"
        if part is None:
            part = runner.run(category, method, listed, training)
            _write(path, part | {"fingerprint": fingerprint})
            truth = listed.target == -1
            aurocs = [metrics.auroc(truth, scores) for scores in part["scores"]]
            said = f"AUROC {100 * np.mean(aurocs):.1f}"
    except Exception as error:  # a row with its error, never a lost run
        return {"error": _reason(error)}, _reason(error)
    part.pop("fingerprint", None)
    return part, said


def _settings_of(out: Path) -> dict[str, Any] | None:
    """Return what a folder of an earlier run says of itself; None for a new folder."""
    path = out / "settings.json"
    if os.path.lexists(path):
        try:
            found: dict[str, Any] = parsed_json(read_bytes(str(path)))
            there = {**found["settings"]}  # a copy
            if there["categories"] is None:
                del there["categories"]
            for names in (there["methods"], there.get("categories", [])):
                if not isinstance(names, list) or names != [*map(str, names)]:
                    raise ValueError(names)
        except (OSError, ValueError, TypeError, KeyError):
            raise UsageError(f"{path}: was not written by `clipad benchmark`") from None
        return found
    # A run that was killed may have left what it had not finished.
    try:
        names = os.listdir(out) if os.path.lexists(out) else []
    except NotADirectoryError:
        names = [out.name]
    except OSError as error:
        raise UsageError(f"--out {out}: {error_words(error)}") from error
    if not all(name.startswith(UNFINISHED) for name in names):
        raise UsageError(f"{out}: is not empty and holds no benchmark")
    return None


def _claim(out: Path, described: dict[str, Any]) -> None:
    """Make the folder, or check that it holds a run with the same settings."""
    found = _settings_of(out)
    if found is not None:
        # These may grow: `joined` has put them together.
        for name in ("methods", "categories"):
            found["settings"][name] = described["settings"][name]
    if found is not None and found != described:
        differing = sorted(
            name
            for name in {*found, *described}
            if found.get(name) != described.get(name)
        )
        inner = "settings" in differing and ", ".join(
            f"{name}: {found['settings'].get(name)!r} there, {value!r} now"
            for name, value in described["settings"].items()
            if found["settings"].get(name) != value
        )
        raise UsageError(
            f"{out} holds a benchmark with other {', '.join(differing)}"
            + (f" ({inner})" if inner else "")
            + "; name another folder with --out"
        )
    # In this order, so that a run that is killed between them can be resumed.
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "settings.json", described)
        (out / "parts").mkdir(exist_ok=True)
    except OSError as error:
        where = error.filename or out
        raise UsageError(f"--out {where}: {error_words(error)}") from error


def _finished(
    path: Path, fingerprint: str, shape: tuple[int, int]
) -> dict[str, Any] | None:
    """Return what an earlier run found, if it is whole and of the same images.

    `shape` is that of the scores.
    """
    try:
        part = parsed_json(read_bytes(str(path)))
        pixels = [[values[name] for name in PIXEL_METRICS] for values in part["pixels"]]
        is_whole = (
            part["fingerprint"] == fingerprint
            and are_numbers(part["scores"], *shape)
            and are_numbers(part["thresholds"], shape[0])
            and (not pixels or are_numbers(pixels, shape[0], len(PIXEL_METRICS)))
            and part["times"].keys() == set(TIMES)
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return part if is_whole else None


def _file_name(category: str, method: str) -> str:
    # The number separates names that look alike without their special letters.
    number = zlib.crc32(category.encode("utf-8", "surrogateescape"))
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", category)[:40]
    return f"{plain}-{number:08x}-{method}.json"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # All images of a folder may be unreadable, and each is named.
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, allow_nan=False) + "\n", is_ours=True)
