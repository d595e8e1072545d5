"""One rule for masks, wherever they are passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipad_sklearn import SDPDetector, SDPPlusDetector
from clipad_sklearn._masks import mask_pixels
from clipad_sklearn.metrics import aupr, auroc, f1_max, get_scorer, pro
from clipad_sklearn.plotting import AnomalyMapDisplay

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), dtype=bool)
MASK[16:48, 8:40] = True
MAP = np.random.default_rng(1).random((64, 64)) + MASK


def _png(mask: np.ndarray, folder: Path) -> str:
    path = folder / "mask.png"
    Image.fromarray(mask).save(path)
    return str(path)


# The same mask, in every form that is accepted.
FORMS: dict[str, Callable[[Path], Any]] = {
    "bool": lambda _: MASK,
    "0 and 1": lambda _: MASK.astype(np.uint8),
    "0 and 255": lambda _: MASK.astype(np.uint8) * np.uint8(255),
    "0.0 and 1.0": lambda _: MASK.astype(float),
    "0 and 255, int64": lambda _: MASK * 255,
    "list": lambda _: MASK.astype(int).tolist(),
    "PIL": lambda _: Image.fromarray(MASK),
    "file, 0 and 255": lambda folder: _png(MASK.astype(np.uint8) * 255, folder),
    "file, 0 and 1": lambda folder: _png(MASK.astype(np.uint8), folder),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_the_same_everywhere(form: str, tmp_path: Path) -> None:
    mask = FORMS[form](tmp_path)
    np.testing.assert_array_equal(mask_pixels(mask), MASK)
    for metric in (auroc, aupr, f1_max, pro):
        assert metric([mask], [MAP]) == metric([MASK], [MAP])
    detector = SDPDetector("tiny", sigma=4).fit()
    scorer = get_scorer("pro")
    assert scorer(detector, [IMAGE], [mask]) == scorer(detector, [IMAGE], [MASK])
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    display = AnomalyMapDisplay.from_predictions([IMAGE], [MAP], masks=[mask])
    np.testing.assert_array_equal(display.masks[0], MASK)
    coefs = [
        SDPPlusDetector("tiny", n_epochs=1, random_state=0).fit([IMAGE], [given]).coefs_
        for given in (mask, MASK)
    ]
    np.testing.assert_array_equal(*coefs)


@pytest.mark.parametrize("values", [(0, 2), (1, 255), (0, 0.5), (0, 1, 255), (-1, 1)])
def test_other_values_are_refused_everywhere(values: tuple[float, ...]) -> None:
    mask = np.resize(np.array(values), (64, 64))
    with pytest.raises(ValueError, match="values other than 0 and 1, or 0 and 255"):
        mask_pixels(mask)
    with pytest.raises(ValueError, match="Mask 0: values other than 0 and 1"):
        pro([mask], [MAP])
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        SDPPlusDetector("tiny").fit([IMAGE], [mask])
    with pytest.raises(ValueError, match="Mask 0: values other than 0 and 1"):
        AnomalyMapDisplay.from_predictions([IMAGE], [MAP], masks=[mask])
