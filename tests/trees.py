"""Miniature trees in the real layouts of the data sets."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from clipad_sklearn.datasets import make_defect_images


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_mvtec_ad(
    root: Path,
    categories: tuple[str, ...] = ("bottle", "wood"),
    *,
    n: int = 8,
    size: int = 48,
) -> Path:
    """Half of the n test images are good; two good images to train on."""
    for seed, category in enumerate(categories):
        folder = root / category
        data = make_defect_images(n, size=size, random_state=seed)
        for i, (pixels, mask) in enumerate(zip(data.images, data.masks, strict=True)):
            if data.target[i] == 1:
                _save(pixels, folder / "test" / "good" / f"{i:03d}.png")
                if i < 4:
                    _save(pixels, folder / "train" / "good" / f"{i:03d}.png")
                continue
            kind = ("scratch", "hole")[i % 4 // 2]
            _save(pixels, folder / "test" / kind / f"{i:03d}.png")
            path = folder / "ground_truth" / kind / f"{i:03d}_mask.png"
            _save(mask.astype(np.uint8) * 255, path)
    return root


def write_visa(root: Path, categories: tuple[str, ...] = ("candle", "pcb1")) -> Path:
    """VisA as downloaded: JPEG images, and masks with the number of the defect."""
    rows = []
    for seed, category in enumerate(categories):
        data = make_defect_images(8, size=48, random_state=seed)
        for i, (pixels, mask) in enumerate(zip(data.images, data.masks, strict=True)):
            good = data.target[i] == 1
            kind = "Normal" if good else "Anomaly"
            image = f"{category}/Data/Images/{kind}/{i:03d}.JPG"
            mask_name = "" if good else f"{category}/Data/Masks/Anomaly/{i:03d}.png"
            _save(pixels, root / image)
            if not good:
                _save(mask.astype(np.uint8) * (1 + i % 3), root / mask_name)
            split = "train" if good and i < 4 else "test"
            label = kind.lower()
            rows.append((category, split, label, image, mask_name))
    (root / "split_csv").mkdir()
    with open(root / "split_csv" / "1cls.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("object", "split", "label", "image", "mask"))
        writer.writerows(rows)
    return root


def write_visa_one_class(root: Path) -> Path:
    """VisA as its authors' script lays it out: ``bad``, and masks without suffix."""
    for category in ("candle", "pcb1"):
        data = make_defect_images(8, size=48, random_state=0)
        for i, (pixels, mask) in enumerate(zip(data.images, data.masks, strict=True)):
            kind = "good" if data.target[i] == 1 else "bad"
            _save(pixels, root / category / "test" / kind / f"{i:03d}.JPG")
            if kind == "bad":
                path = root / category / "ground_truth" / "bad" / f"{i:03d}.png"
                _save(mask.astype(np.uint8) * 255, path)
            else:
                _save(pixels, root / category / "train" / "good" / f"{i:03d}.JPG")
    return root


SEWER_HEADER = [
    "Filename", "WaterLevel", "VA", "RB", "OB", "PF", "DE", "FS", "IS", "RO", "IN",
    "AF", "BE", "FO", "GR", "PH", "PB", "OS", "OP", "OK", "ND", "Defect",
]  # fmt: skip


def write_sewer_ml(root: Path, *, n: int = 8) -> Path:
    """Sewer-ML, images of the part `Val` in two folders."""
    data = make_defect_images(n, size=48, random_state=0)
    root.mkdir(exist_ok=True)
    with open(root / "SewerML_Val.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, SEWER_HEADER, restval=0)
        writer.writeheader()
        for i, pixels in enumerate(data.images):
            name = f"{i:08d}.png"
            _save(pixels, root / f"val{i % 2:02d}" / name)
            bad = data.target[i] == -1
            labels = {"RB": 1, "FS": int(i % 3 == 0), "Defect": 1} if bad else {"ND": 1}
            writer.writerow({"Filename": name, "WaterLevel": 10} | labels)
    return root
