"""`SDPPlusDetector`: training, its formulas, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_maps as reference
import torch
from PIL import Image
from sklearn.model_selection import GridSearchCV, KFold

from clipad_sklearn import (
    ImageReadError,
    OpenCLIP,
    SDPDetector,
    SDPPlusDetector,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._detectors import sdp_training
from clipad_sklearn._detectors.sdp import stage_ends
from clipad_sklearn._detectors.sdp_training import Training, training_loss
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.metrics import auroc, get_scorer

pytestmark = pytest.mark.usefixtures("on_processor")

FAST = {
    "sigma": 3.0,
    "temperature": 0.2,
    "n_epochs": 3,
    "learning_rate": 1e-3,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def data() -> Any:
    return make_defect_images(24, families="textures", size=64, random_state=0)


def test_training_lowers_the_loss_and_is_repeatable(data: Any) -> None:
    first = SDPPlusDetector("tiny", **FAST).fit(data.images, data.masks)
    assert len(first.loss_curve_) == FAST["n_epochs"]
    assert np.all(np.diff(first.loss_curve_) < 0)
    second = SDPPlusDetector("tiny", **FAST).fit(data.images, data.masks)
    np.testing.assert_array_equal(first.coefs_, second.coefs_)
    np.testing.assert_array_equal(first.intercepts_, second.intercepts_)
    third = SDPPlusDetector("tiny", **{**FAST, "random_state": 1})
    assert not np.allclose(third.fit(data.images, data.masks).coefs_, first.coefs_)


def test_better_than_sdp_on_held_out_families() -> None:
    from clipad_sklearn.datasets import TEXTURE_FAMILIES

    half = len(TEXTURE_FAMILIES) // 2
    seen, held_out = TEXTURE_FAMILIES[:half], TEXTURE_FAMILIES[half:]
    train = make_defect_images(60, families=seen, size=112, random_state=0)
    test = make_defect_images(30, families=held_out, size=112, random_state=1)
    params = {**FAST, "n_epochs": 20, "learning_rate": 3e-3, "shuffle": True}
    plus = SDPPlusDetector("tiny", **params).fit(train.images, train.masks)
    sdp = SDPDetector("tiny", sigma=3.0).fit()
    scores = [auroc(test.masks, d.anomaly_maps(test.images)) for d in (plus, sdp)]
    assert scores[0] > scores[1]


@pytest.mark.parametrize("alias_compat", [False, True])
def test_maps(alias_compat: bool, data: Any) -> None:
    clip = OpenCLIP("tiny", batch_size=4)
    params = {**FAST, "temperature": 0.01}
    detector = SDPPlusDetector(clip, alias_compat=alias_compat, **params)
    detector.fit(data.images, data.masks)
    maps = detector.anomaly_maps(data.images[:5], size="model")
    model = load(clip)
    ends = stage_ends(None, len(model.model.visual.transformer.resblocks))
    published = reference.sdp_plus_map(
        model.model.visual,
        model.transform("squash")(Image.fromarray(data.images[4])),
        ends,
        alias_compat,
        detector.prompt_detector_.prototypes_[0],
        detector.coefs_,
        detector.intercepts_,
        detector.sigma,
    )
    np.testing.assert_allclose(maps[4], (1 + published / len(ends)) / 3, atol=1e-4)


def test_loss_is_the_published_one(rng: np.random.Generator) -> None:
    anomalous = rng.uniform(0, 1, (3, 2, 5, 4))
    mask = (rng.uniform(0, 1, (3, 5, 4)) < 0.3).astype(float)
    expected = 0.0
    for stage in range(2):
        p = anomalous[:, stage]
        one_hot = np.stack([1 - mask, mask]).clip(1e-5, 1 - 1e-5)
        pt = (one_hot * np.stack([1 - p, p])).sum(axis=0) + 1e-5
        expected += np.mean(-((1 - pt) ** 2) * np.log(pt))
        for i in range(3):
            overlap, areas = (p[i] * mask[i]).sum(), p[i].sum() + mask[i].sum()
            expected += (1 - (2 * overlap + 1) / (areas + 1)) / 3
    tensors = torch.from_numpy(anomalous), torch.from_numpy(mask)[:, None]
    both = Training(
        temperature=0.01,
        focal_weight=1,
        focal_gamma=2,
        dice_weight=1,
        learning_rate=1e-4,
        n_epochs=5,
        shuffle=False,
    )
    np.testing.assert_allclose(float(training_loss(*tensors, both)), expected)
    only_dice, only_focal = replace(both, focal_weight=0), replace(both, dice_weight=0)
    parts = [float(training_loss(*tensors, part)) for part in (only_dice, only_focal)]
    np.testing.assert_allclose(sum(parts), expected)


def test_masks_of_all_kinds_are_the_same(data: Any, tmp_path: Path) -> None:
    images, masks = data.images[:6], data.masks[:6]
    files: list[str] = []
    for index, mask in enumerate(masks):
        files.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(files[-1])
    expected = SDPPlusDetector("tiny", **FAST).fit(images, masks).coefs_
    for same in (
        files,
        [mask.astype(int) for mask in masks],
        [mask.astype(np.uint8) * 255 for mask in masks],
        [mask if mask.any() else None for mask in masks],
        np.stack(masks),
    ):
        detector = SDPPlusDetector("tiny", **FAST).fit(images, same)
        np.testing.assert_allclose(detector.coefs_, expected, atol=1e-6)


def test_sizes_may_differ(photos: list[np.ndarray]) -> None:
    masks = [np.eye(*photo.shape[:2], dtype=bool) for photo in photos]
    SDPPlusDetector("tiny", **FAST).fit(photos, [*masks[:-1], None])


def test_more_tokens_than_are_kept(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {**FAST, "shuffle": True}
    kept = SDPPlusDetector("tiny", **params).fit(data.images, data.masks)
    monkeypatch.setattr(sdp_training, "LARGEST_KEPT_BYTES", 0)
    computed = SDPPlusDetector("tiny", **params).fit(data.images, data.masks)
    np.testing.assert_allclose(computed.coefs_, kept.coefs_, atol=1e-4)


def test_class_names_while_training(data: Any) -> None:
    images, masks = data.images[:8], data.masks[:8]
    names = ["nut", "paper"] * 4
    both = SDPPlusDetector("tiny", **FAST).fit(images, masks, class_name=names)
    one = SDPPlusDetector("tiny", **FAST).fit(images, masks, class_name="nut")
    assert not np.allclose(both.coefs_, one.coefs_)


def test_warm_start(data: Any) -> None:
    detector = SDPPlusDetector("tiny", **FAST).fit(data.images, data.masks)
    coefs, curve = detector.coefs_, detector.loss_curve_
    detector.set_params(warm_start=True, n_epochs=1).fit(data.images, data.masks)
    assert detector.loss_curve_[0] < curve[-1] * 1.05
    assert not np.array_equal(detector.coefs_, coefs)
    coefs = detector.coefs_
    # Without masks the layers stay, and thresholds are set.
    detector.set_params(pixel_contamination=0.05).fit(data.images)
    np.testing.assert_array_equal(detector.coefs_, coefs)
    assert np.mean(detector.predict_masks(data.images, size="model")) <= 0.05
    detector.set_params(layers=(1,), pixel_contamination="auto")
    with pytest.raises(ValueError, match="The existing layers have shape"):
        detector.fit(data.images)


def test_save_and_load(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    detector = SDPPlusDetector("tiny", **FAST).fit(data.images, data.masks)
    detector.save_layers(path)
    loaded = SDPPlusDetector("tiny", sigma=FAST["sigma"], temperature=0.2)
    assert loaded.load_layers(path) is loaded
    np.testing.assert_array_equal(
        loaded.anomaly_maps(data.images[:2]), detector.anomaly_maps(data.images[:2])
    )
    assert loaded.predict(data.images[:2]).shape == (2,)
    for params, message in (
        ({"layers": (1, 2)}, "were trained with layers="),
        ({"alias_compat": True}, "alias_compat=False, but this"),
        ({"clip": OpenCLIP("ViT-S-32-alt", "random"), "layers": None}, "layers"),
    ):
        with pytest.raises(ValueError, match=message):
            SDPPlusDetector(**{"clip": "tiny", **params}).load_layers(path)
    with pytest.raises(FileNotFoundError):
        loaded.load_layers(tmp_path / "missing.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="does not hold layers"):
        loaded.load_layers(tmp_path / "text.safetensors")


IMAGE = np.zeros((8, 9, 3), np.uint8)
MASK = np.eye(8, 9, dtype=bool)


@pytest.mark.parametrize(
    ("X", "masks", "error", "message"),
    [
        ([IMAGE], None, ValueError, "masks is None"),
        (None, None, ValueError, "masks is None"),
        (None, [MASK], ValueError, "but X is None"),
        ([IMAGE], [MASK, MASK], ValueError, "There are 2 masks, but X has 1"),
        ([IMAGE], "mask.png", ValueError, "expected a sequence with one mask"),
        ([IMAGE], [None], ValueError, "No mask has an anomalous pixel"),
        ([IMAGE], [~MASK & MASK], ValueError, "No mask has an anomalous pixel"),
        ([IMAGE], [MASK.T], ValueError, r"Mask 0 has the size \(9, 8\)"),
        ([IMAGE], [MASK[0]], ImageReadError, r"expected \(height, width\)"),
        ([IMAGE], [MASK * 7], ImageReadError, "values other than 0 and 1"),
        ([IMAGE] * 2, ["a.png", "b.png"], ImageReadError, "2 images could not"),
        (["a.png", "b.png"], [MASK, None], ImageReadError, "2 images could not"),
        ([], [], ValueError, "minimum of 1"),
        (IMAGE, [MASK], ValueError, "Wrap it in a list"),
    ],
)
def test_wrong_images_and_masks(X: Any, masks: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        SDPPlusDetector("tiny", **FAST).fit(X, masks)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"focal_weight": -1}, "focal_weight=-1: expected a number >= 0"),
        ({"focal_gamma": "2"}, "focal_gamma='2'"),
        ({"dice_weight": np.inf}, "dice_weight=inf"),
        ({"learning_rate": None}, "learning_rate=None"),
        ({"n_epochs": 0}, "n_epochs=0: expected an integer >= 1"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"layers": (0,)}, "layers"),
        ({"clip": OpenCLIP("tiny", resize="crop")}, "resize='crop'"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    detector = SDPPlusDetector(**{"clip": "tiny", **params})
    with pytest.raises(ValueError, match=message):
        detector.fit([IMAGE], [MASK])


def test_search_by_pixels(data: Any) -> None:
    params = {**FAST, "n_epochs": 1}
    search = GridSearchCV(
        SDPPlusDetector("tiny", **params),
        {"sigma": [0, 8]},
        scoring=get_scorer("pixel_auroc"),
        cv=KFold(2, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(data.images, data.masks)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_fit_predict(data: Any) -> None:
    detector = SDPPlusDetector("tiny", contamination=0.25, **FAST)
    verdicts = detector.fit_predict(iter(data.images), data.masks)
    np.testing.assert_array_equal(verdicts, detector.predict(data.images))
    assert (verdicts == -1).sum() == len(data.images) // 4


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_where_gradients_are_off(context: Any, data: Any) -> None:
    expected = SDPPlusDetector("tiny", **FAST).fit(data.images, data.masks).coefs_
    with context():
        detector = SDPPlusDetector("tiny", **FAST).fit(data.images, data.masks)
    np.testing.assert_array_equal(detector.coefs_, expected)


def test_the_range_that_loaded_layers_lack(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    SDPPlusDetector("tiny", **FAST).fit(data.images, data.masks).save_layers(path)
    detector = SDPPlusDetector("tiny", image_score="prompts+map", **FAST)
    detector.load_layers(path)
    assert len(detector.anomaly_maps(data.images[:2])) == 2
    with pytest.raises(ValueError, match=r"only fit\(X\) with images gives"):
        detector.score_samples(data.images)
    detector.set_params(warm_start=True).fit(data.images)
    assert len(detector.score_samples(data.images)) == len(data.images)
    # That range is not kept for other layers.
    with pytest.raises(ValueError, match=r"only fit\(X\) with images gives"):
        detector.load_layers(path).score_samples(data.images)


def test_unreadable_images_are_named_by_their_place(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdp_training, "LARGEST_KEPT_BYTES", 0)
    images = [*data.images[:5], "bad.png", *data.images[6:]]
    detector = SDPPlusDetector("tiny", shuffle=True, **FAST)
    with pytest.raises(ImageReadError, match=r"  5: bad.png: no such file"):
        detector.fit(images, data.masks)
