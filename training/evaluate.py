"""Score a model on the project's own image sets: ``python -m training.evaluate``.

The sets are named by what was held out of the training: the first letter stands for
the families, the second for the defects, H is held out and T is trained. Nothing here
chooses a checkpoint, except `validate`, which looks at trained families and defects.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from clipad_sklearn import OpenCLIP, PromptDetector, RandomWordDetector
from clipad_sklearn._clip.models import load
from clipad_sklearn._prompts import random_word_prompts
from clipad_sklearn.datasets._defect_images import (
    NOUNS,
    NUMBERS,
    STRUCTURAL,
    WITH_PARTS,
    Sample,
    draw_sample,
)
from clipad_sklearn.datasets._drawn.drawing import COLORS

from .captions import HELD_OUT_WORDS
from .model import build_model, encode_image_tokens, encode_texts, normalise_pixels
from .pool import COUNTS, fill, record
from .settings import (
    HELD_OUT_DEFECTS,
    HELD_OUT_FAMILIES,
    HELD_OUT_TEXTURES,
    IMAGE_SIZE,
    PACKAGE,
    RUNS,
    TEST_SEED,
    TRAINED_DEFECTS,
    TRAINED_FAMILIES,
    TRAINED_OBJECTS,
    TRAINED_TEXTURES,
    VALIDATION_SEED,
)

VALIDATION_PAIRS = 300  # of textures, and as many of objects
SETS = {
    "HH": (HELD_OUT_FAMILIES, HELD_OUT_DEFECTS, 56),
    "HT": (HELD_OUT_FAMILIES, TRAINED_DEFECTS, 40),
    "TH": (TRAINED_FAMILIES, HELD_OUT_DEFECTS, 8),
    "TT": (TRAINED_FAMILIES, TRAINED_DEFECTS, 8),
}  # families, defects, pairs per family


def draw_samples(
    seed: int, families: Sequence[str], defects: Sequence[str], each: int, size: int
) -> list[Sample]:
    """`each` pairs of every family."""
    samples = []
    for family in families:
        possible = [d for d in defects if d not in STRUCTURAL or family in WITH_PARTS]
        for k in range(each):
            rng = np.random.default_rng([seed, len(samples)])
            defect = possible[k % len(possible)]
            samples.append(draw_sample(rng, size, [family], [defect], (0.2, 1.0)))
    return samples


def validation_rows(size: int) -> np.ndarray:
    """New pairs of trained families and defects: textures first, then objects."""
    samples = []
    for k in range(2 * VALIDATION_PAIRS):
        families = TRAINED_TEXTURES if k < VALIDATION_PAIRS else TRAINED_OBJECTS
        family = families[k % len(families)]
        possible = [
            d for d in TRAINED_DEFECTS if d not in STRUCTURAL or family in WITH_PARTS
        ]
        rng = np.random.default_rng([VALIDATION_SEED, k])
        samples.append(draw_sample(rng, size, [family], possible, (0.2, 1.0)))
    rows = np.zeros(len(samples), record(size))
    for row, sample in zip(rows, samples, strict=True):
        fill(row, sample)
    return rows


def to_model_input(images: np.ndarray) -> torch.Tensor:
    """Squash with Pillow's bicubic filter, as `OpenCLIP` does."""
    resized = [
        np.asarray(
            Image.fromarray(image).resize(
                (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC
            )
        )
        for image in images
    ]
    tensor = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return normalise_pixels(tensor.float() / 255)


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """In percent; scores are anomaly scores."""
    target = np.r_[np.zeros(len(normal)), np.ones(len(anomalous))]
    return 100 * float(roc_auc_score(target, np.r_[normal, anomalous]))


@torch.no_grad()
def validate(weights: dict[str, Any], config: dict[str, Any], trainer: Any) -> dict:
    """Trained families and defects, new images: the figures that choose a model."""
    path = trainer.pool.folder.parent / "validation.npy"
    if not path.exists():
        np.save(path, validation_rows(trainer.settings.pool_size))
    rows = np.load(path)
    model = build_model(config)
    model.load_state_dict(weights)
    model.eval()
    good, bad = (
        torch.cat([
            functional.normalize(model.encode_image(to_model_input(part)), dim=-1)
            for part in np.array_split(rows[side], len(rows) // 50)
        ])
        for side in ("good", "bad")
    )  # fmt: skip
    prompts = ["a photo of a normal object.", "a photo of a damaged object."]
    names = [f"a photo of a {NOUNS[f][0]}." for f in TRAINED_FAMILIES]
    text = encode_texts(model, torch.from_numpy(trainer.tokenizer(prompts + names)))
    direction = text[1] - text[0]
    half = VALIDATION_PAIRS
    result = {}
    for group, part in (("textures", slice(0, half)), ("objects", slice(half, None))):
        normal, anomalous = good[part] @ direction, bad[part] @ direction
        result[group] = round(auroc(normal.numpy(), anomalous.numpy()), 2)
        result[group + "_ranked"] = round(
            100 * (anomalous > normal).float().mean().item(), 1
        )
        named = (good[part] @ text[2:].T).argmax(dim=1).numpy()
        result[group + "_named"] = round(
            100 * float((named == rows["family"][part]).mean()), 1
        )
    return result


# The tables of the model card


def family_table(
    samples: Sequence[Sample], normal: np.ndarray, anomalous: np.ndarray
) -> dict[str, float]:
    """AUROC of every family, and of all images of a group together."""
    families = np.array([sample.family for sample in samples])
    table = {
        family: auroc(normal[families == family], anomalous[families == family])
        for family in dict.fromkeys(families)
    }
    textures = np.isin(families, TRAINED_TEXTURES + HELD_OUT_TEXTURES)
    means = {}
    for group, part in (("textures", textures), ("objects", ~textures)):
        inside = [table[f] for f in table if (families[part] == f).any()]
        means[f"mean of {group}"] = statistics.mean(inside)
        means[f"pooled {group}"] = auroc(normal[part], anomalous[part])
    means["mean of families"] = statistics.mean(table.values())
    return {**means, **table}


def baselines(images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Scores without any model: mean, deviation and high-pass energy of the grey."""
    gray = [image.mean(axis=-1) for image in images]
    return {
        "mean": np.array([g.mean() for g in gray]),
        "deviation": np.array([g.std() for g in gray]),
        "high-pass": np.array(
            [np.abs(g - ndimage.uniform_filter(g, 5)).mean() for g in gray]
        ),
    }


def image_scores(
    clip: OpenCLIP, samples: Sequence[Sample], detectors: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Tables of families for every detector and every trivial score."""
    good = clip.encode_image([sample.good for sample in samples])
    bad = clip.encode_image([sample.bad for sample in samples])
    tables = {
        name: family_table(
            samples, -detector.score_samples(good), -detector.score_samples(bad)
        )
        for name, detector in detectors.items()
    }
    normal = baselines([sample.good for sample in samples])
    anomalous = baselines([sample.bad for sample in samples])
    for name in normal:
        tables[name] = family_table(samples, normal[name], anomalous[name])
    return tables


def defect_table(
    clip: OpenCLIP, samples: Sequence[Sample], detector: Any
) -> dict[str, dict[str, float]]:
    """AUROC of every kind of defect against all good images of its group."""
    good = -detector.score_samples(clip.encode_image([s.good for s in samples]))
    bad = -detector.score_samples(clip.encode_image([s.bad for s in samples]))
    textures = np.array(
        [s.family in TRAINED_TEXTURES + HELD_OUT_TEXTURES for s in samples]
    )
    defects = np.array([s.defect for s in samples])
    return {
        defect: {
            group: auroc(good[part], bad[part & (defects == defect)])
            for group, part in (("textures", textures), ("objects", ~textures))
        }
        for defect in dict.fromkeys(defects)
    }


def naming(clip: OpenCLIP, samples: Sequence[Sample]) -> dict[str, float]:
    """Zero-shot top-1 of families, colours and counts on good images, in percent."""
    images = clip.encode_image([sample.good for sample in samples])
    templates = ("a photo of a {}.", "a close-up photo of the {}", "{}")

    def prototype(phrases: Sequence[str]) -> np.ndarray:
        texts = [t.format(p) for t in templates for p in phrases]
        mean = clip.encode_text(texts).mean(axis=0)
        return mean / np.linalg.norm(mean)

    classes = np.stack([prototype(NOUNS[f]) for f in TRAINED_FAMILIES])
    family = np.array([TRAINED_FAMILIES.index(sample.family) for sample in samples])
    order = np.argsort(-(images @ classes.T), axis=1)
    result = {
        "families, chance": 100 / len(TRAINED_FAMILIES),
        "families, top-1": 100 * (order[:, 0] == family).mean(),
        "families, top-5": 100 * (order[:, :5] == family[:, None]).any(axis=1).mean(),
    }
    for what, values in (("colors", COLORS), ("counts", COUNTS)):
        right, truth = [], []
        for image, sample in zip(images, samples, strict=True):
            value = sample.color if what == "colors" else sample.count
            if value not in values:
                continue
            noun = NOUNS[sample.family][0]
            phrases = [
                f"{v} {noun}" if what == "colors" else f"{noun} with {NUMBERS[v]} parts"
                for v in values
            ]
            prototypes = np.stack([prototype([phrase]) for phrase in phrases])
            right.append(values[int(np.argmax(prototypes @ image))] == value)
            truth.append(value)
        most = max(truth.count(v) for v in set(truth)) / len(truth)
        result[f"{what}, images"] = len(truth)
        result[f"{what}, most frequent"] = 100 * most
        result[f"{what}, top-1"] = 100 * float(np.mean(right))
    return result


def right_and_wrong_names(
    clip: OpenCLIP, samples: Sequence[Sample]
) -> dict[str, float]:
    """What the object's name in the prompts changes.

    For the similarity of a good image to one prompt, and for the scores of defects.
    """
    good = clip.encode_image([sample.good for sample in samples])
    bad = clip.encode_image([sample.bad for sample in samples])
    families = list(dict.fromkeys(sample.family for sample in samples))
    labels = np.array([families.index(sample.family) for sample in samples])
    prompts = [f"a photo of a flawless {NOUNS[family][0]}." for family in families]
    alike = good @ clip.encode_text(prompts).T
    fits = labels[:, None] == np.arange(len(families))
    scores = np.empty((len(families), 2, len(samples)))
    for k, family in enumerate(families):
        detector = PromptDetector(clip, class_name=NOUNS[family][0]).fit(None)
        scores[k] = [-detector.score_samples(good), -detector.score_samples(bad)]
    index = np.arange(len(samples))
    right = scores[labels, :, index]
    wrong = scores[(labels + len(families) // 2) % len(families), :, index]
    spread = right.std()
    above = alike[fits][:, None] > alike
    return {
        "similarity, right name": float(alike[fits].mean()),
        "similarity, wrong names": float(alike[~fits].mean()),
        "right name above a wrong one, %": 100 * float(above[~fits].mean()),
        "AUROC, right name": family_table(samples, *right.T)["mean of families"],
        "AUROC, wrong name": family_table(samples, *wrong.T)["mean of families"],
        "mean change / deviation of scores": float(
            np.abs(right - wrong).mean() / spread
        ),
    }


@torch.no_grad()
def maps(clip: OpenCLIP, samples: Sequence[Sample]) -> dict[str, float]:
    """Pixel AUROC of patch tokens and of 2 x 2 windows, pooled in each family."""
    model = load(clip).model
    normal, anomalous = (
        torch.from_numpy(clip.encode_text([f"a photo of a {state} object."]))
        for state in ("normal", "damaged")
    )
    direction = (anomalous - normal)[0]
    side = IMAGE_SIZE // model.visual.conv1.kernel_size[0]
    corner = torch.arange(side - 1)
    starts = (corner[:, None] * side + corner).flatten()
    windows = starts[:, None] + torch.tensor([0, 1, side, side + 1])

    def both(images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        pixels = to_model_input(np.stack(images))
        patches = encode_image_tokens(model, pixels)[1] @ direction
        total = torch.zeros(len(pixels), side * side)
        hits = torch.zeros(side * side)
        for window in windows:
            kept = window.expand(len(pixels), -1)
            score = encode_image_tokens(model, pixels, kept)[0] @ direction
            total[:, window] += score[:, None]
            hits[window] += 1
        return {"patches": patches, "2 x 2 windows": total / hits}

    def pixels_of(grid: torch.Tensor) -> np.ndarray:
        field = grid.view(-1, 1, side, side)
        return functional.interpolate(field, IMAGE_SIZE, mode="bilinear")[:, 0].numpy()

    table: dict[str, list[float]] = {}
    per_image: dict[str, list[float]] = {}
    for family in dict.fromkeys(sample.family for sample in samples):
        part = [sample for sample in samples if sample.family == family]
        masks = np.stack([
            np.asarray(
                Image.fromarray(s.mask).resize((IMAGE_SIZE, IMAGE_SIZE), 0), bool
            )
            for s in part
        ])  # fmt: skip
        clean, dirty = both([s.good for s in part]), both([s.bad for s in part])
        for name in clean:
            good, bad = pixels_of(clean[name]), pixels_of(dirty[name])
            normal_pixels = np.concatenate([good.ravel(), bad[~masks]])
            table.setdefault(name, []).append(auroc(normal_pixels, bad[masks]))
            per_image.setdefault(name, []).extend(
                auroc(b[~m], b[m]) for b, m in zip(bad, masks, strict=True) if m.any()
            )
    result = {
        f"{name}, pooled per family": statistics.mean(v) for name, v in table.items()
    }
    for name, values in per_image.items():
        result[f"{name}, per image"] = statistics.mean(values)
    return result


def text_accuracy(clip: OpenCLIP, detector: RandomWordDetector) -> dict[str, float]:
    """Prompts with words that the training never saw, classified, in percent."""
    result = {}
    for name, source in (
        ("held-out words", sorted(HELD_OUT_WORDS)),
        ("letters", "letters"),
    ):
        normal, anomalous = random_word_prompts(
            2000, word_source=source, random_state=12345
        )
        right = detector.score_samples(clip.encode_text(normal)) > 0
        wrong = detector.score_samples(clip.encode_text(anomalous)) <= 0
        result[name] = 100 * float(np.r_[right, wrong].mean())
    return result


def word_seeds(
    clip: OpenCLIP, samples: Sequence[Sample], n_pairs: int
) -> dict[str, float]:
    """The lowest and the highest AUROC of ten detectors that differ in their seed."""
    detectors = {
        str(seed): RandomWordDetector(clip, n_pairs=n_pairs, random_state=seed)
        for seed in range(100, 110)
    }
    for detector in detectors.values():
        detector.fit(None)
    tables = image_scores(clip, samples, detectors)
    means = [tables[name]["mean of families"] for name in detectors]
    return {"lowest": min(means), "highest": max(means)}


def speed(folder: Path) -> dict[str, float]:
    """Seconds to load, and milliseconds per image at batch 32 on two threads."""
    import open_clip

    begin = time.perf_counter()
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    loading = time.perf_counter() - begin
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    images = torch.randn(32, 3, IMAGE_SIZE, IMAGE_SIZE)
    times = []
    with torch.inference_mode():
        for _ in range(20):
            begin = time.perf_counter()
            model.encode_image(images)
            times.append(time.perf_counter() - begin)
    torch.set_num_threads(threads)
    return {
        "load, s": loading,
        "per image, ms (median)": 1e3 * statistics.median(times) / 32,
        "per image, ms (best)": 1e3 * min(times) / 32,
        "megabytes": sum(p.stat().st_size for p in folder.iterdir()) / 1e6,
        "parameters, millions": sum(p.numel() for p in model.parameters()) / 1e6,
    }


def real_images(
    clip: OpenCLIP, data: Path, detectors: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every category of a folder in the layout of MVTec AD. Counted in a file."""
    with (RUNS / "real_images_scored.txt").open("a") as file:
        file.write(f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} {data.name}\n")
    result: dict[str, dict[str, Any]] = {}
    for test in sorted(data.glob("**/test")):
        files = [sorted((test / "good").glob("*")), []]
        for kind in sorted(test.iterdir()):
            if kind.name != "good":
                files[1] += sorted(kind.glob("*"))
        images = [[np.asarray(Image.open(p).convert("RGB")) for p in f] for f in files]
        embedded = [clip.encode_image(part) for part in images]
        scores = {
            name: [-detector.score_samples(part) for part in embedded]
            for name, detector in detectors.items()
        }
        simple = [baselines(part) for part in images]
        scores.update({name: [part[name] for part in simple] for name in simple[0]})
        rng = np.random.default_rng(0)
        row: dict[str, Any] = {"good": len(files[0]), "defective": len(files[1])}
        for name, (normal, anomalous) in scores.items():
            row[name] = round(auroc(normal, anomalous), 1)
        name = "random words, seed 0"
        again = [
            auroc(*(rng.choice(part, len(part)) for part in scores[name]))
            for _ in range(1000)
        ]
        row["95 % interval"] = [
            round(float(v), 1) for v in np.percentile(again, (2.5, 97.5))
        ]
        result[test.parent.name] = row
    return result


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(float(value), 2) if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=PACKAGE, help="exported folder")
    parser.add_argument("--real", type=Path, help="real images; never used to choose")
    parser.add_argument("--only-real", action="store_true")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pairs", type=int, default=5000, help="pairs of prompts")
    parser.add_argument("--output", type=Path, help="JSON file of all tables")
    options = parser.parse_args(argv)
    RUNS.mkdir(exist_ok=True)
    clip = OpenCLIP("tiny" if options.model == PACKAGE else str(options.model))
    detectors: dict[str, Any] = {
        f"random words, seed {seed}": RandomWordDetector(
            clip, n_pairs=options.pairs, random_state=seed
        ).fit(None)
        for seed in range(3)
    }
    detectors["random words, vocabulary"] = RandomWordDetector(
        clip, n_pairs=options.pairs, word_source="vocabulary", random_state=0
    ).fit(None)
    for prompts in ("clip-ac", "winclip", "clip-ad"):
        detectors[prompts] = PromptDetector(clip, prompts=prompts).fit(None)
    report: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        report[name] = _rounded(value)
        print(name, json.dumps(report[name], indent=1), flush=True)
        if options.output:
            options.output.write_text(json.dumps(report, indent=1) + "\n")

    if not options.only_real:
        drawn = {
            name: draw_samples(TEST_SEED + k, *chosen, options.size)
            for k, (name, chosen) in enumerate(SETS.items())
        }
        add("speed", speed(options.model))
        for name, samples in drawn.items():
            add(f"images {name}", image_scores(clip, samples, detectors))
        first = detectors["random words, seed 0"]
        add("defects HH", defect_table(clip, drawn["HH"], first))
        add("text accuracy", text_accuracy(clip, first))
        add("naming", naming(clip, drawn["TT"]))
        add("names in prompts", right_and_wrong_names(clip, drawn["TT"]))
        add("maps HH", maps(clip, drawn["HH"]))
        seeds = {
            f"{n_pairs} pairs": word_seeds(clip, drawn["HH"], n_pairs)
            for n_pairs in (2000, 10_000)
        }
        add("ten word seeds HH", seeds)
    if options.real:
        add("real images", real_images(clip, options.real, detectors))


if __name__ == "__main__":
    main()
