"""Good photos, folders that judge themselves, and places, on real photos.

For each category of a folder in the layout of MVTec AD: the image AUROC of
`ReferenceDetector` with some of its good photos, the mean of several draws; of the test
photos compared with each other; and pixel AUROC and PRO where there are masks, beside
`SDPDetector` and `WinCLIPDetector`. Words are those of `PromptDetector`, grey is the
largest deviation of a grey value from the mean of the photo::

    python benchmarks/references.py "$CLIPAD_SHARED_DATA" alien dobot_cubes hazelnut
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from clipad_sklearn import (
    CLIPImageEncoder,
    PromptDetector,
    ReferenceDetector,
    SDPDetector,
    WinCLIPDetector,
    list_images,
)
from clipad_sklearn._cli.benchmark_run import read_mask
from clipad_sklearn._images import open_image
from clipad_sklearn.datasets import load_mvtec_ad
from clipad_sklearn.metrics import auroc, pro

PLACES = ("anywhere", "same", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="in the layout of MVTec AD")
    parser.add_argument("categories", nargs="+")
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--shots", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--maps", action="store_true", help="pixel figures too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    for category in arguments.categories:
        folder = Path(arguments.root) / category
        good = opened(list_images(folder / "train" / "good"))
        normal = list_images(folder / "test" / "good")
        paths = [path for path in list_images(folder / "test") if path not in normal]
        images = opened([*normal, *paths])
        y = np.repeat([1, -1], [len(normal), len(paths)])
        of_images(category, arguments, good, images, y)
        if arguments.maps and (folder / "ground_truth").is_dir():
            root, _, name = str(folder).rpartition("/")
            of_pixels(category, arguments, good, load_mvtec_ad(root, name))


def opened(paths: list[str]) -> list[np.ndarray]:
    return [np.asarray(open_image(path)) for path in paths]


def of_images(
    category: str, arguments: Any, good: list[Any], images: list[Any], y: Any
) -> None:
    def score(n: int, draw: int, **parameters: Any) -> float:
        order = np.random.default_rng(draw).permutation(len(good))[:n]
        detector = ReferenceDetector(arguments.clip, **parameters)
        return 100 * detector.fit([good[i] for i in order]).score(images, y)

    draws = range(arguments.draws)
    figures = {}
    for n in arguments.shots:
        for place in PLACES if n == 8 else ("both",):
            scores = [score(n, draw, location=place) for draw in draws]
            figures[f"{n} {place}"] = np.mean(scores)
    figures[f"all {len(good)}"] = score(len(good), 0)
    for place in PLACES:
        mutual = ReferenceDetector(arguments.clip, n_neighbors=0.3, location=place)
        figures[f"mutual {place}"] = 100 * mutual.fit(images).score(images, y)
    embeddings = CLIPImageEncoder(arguments.clip).fit_transform(images)
    words = PromptDetector(arguments.clip).fit(None)
    figures["words"] = 100 * words.score(embeddings, y)
    grey = [np.abs(image.mean(axis=2) - image.mean()).max() for image in images]
    figures["grey"] = 100 * auroc(y, grey)
    print(category, *(f"| {name} {value:.1f}" for name, value in figures.items()))
    sys.stdout.flush()


def of_pixels(category: str, arguments: Any, good: list[Any], test: Any) -> None:
    size = (112, 112)
    images = opened(test.images)
    masks = [
        None if mask is None else read_mask(mask, image, size)
        for mask, image in zip(test.masks, test.images, strict=True)
    ]
    detectors = {
        "8 good": ReferenceDetector(arguments.clip).fit(good[:8]),
        "all good": ReferenceDetector(arguments.clip).fit(good),
        "all good, sigma 0": ReferenceDetector(arguments.clip, sigma=0).fit(good),
        "all good, sigma 8": ReferenceDetector(arguments.clip, sigma=8).fit(good),
        "mutual": ReferenceDetector(arguments.clip, n_neighbors=0.3).fit(images),
        "SDP": SDPDetector(arguments.clip).fit(None),
        "WinCLIP": WinCLIPDetector(arguments.clip).fit(None),
    }
    for name, detector in detectors.items():
        maps = detector.anomaly_maps(images, size=size)
        figures = 100 * auroc(masks, maps), 100 * pro(masks, maps)
        print(f"{category} {name}: pixel AUROC {figures[0]:.1f}, PRO {figures[1]:.1f}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
