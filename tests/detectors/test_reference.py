"""`ReferenceDetector`: photos compared with the photos given to `fit`."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from slow_references import center_and_spread, few_colours, patch_scores

import clipad_sklearn
from clipad_sklearn import (
    ImageReadError,
    OpenCLIP,
    ReferenceDetector,
    TiledDetector,
    clear_models,
)
from clipad_sklearn._clip.embedding_cache import open_cache
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.patch_tokens import PatchTower, turned
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit

pytestmark = pytest.mark.usefixtures("on_processor")

few_references = pytest.mark.filterwarnings("ignore:Fewer than 4 references")


@pytest.fixture(scope="module")
def good() -> list[np.ndarray]:
    return few_colours(9)


@pytest.fixture(scope="module")
def fitted(good: list[np.ndarray]) -> ReferenceDetector:
    return ReferenceDetector("tiny").fit(good)


# -- against plain loops ------------------------------------------------------------


def _slow_margins(
    detector: ReferenceDetector, X: list[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the margins of X, and their z at each patch before maps are enlarged."""
    tower = PatchTower(load(OpenCLIP("tiny")))
    transform = tower.model.transform("squash")
    import torch
    from PIL import Image

    pixels = torch.stack([transform(Image.fromarray(photo)) for photo in X])
    tokens, _ = tower.encode(pixels, detector.layers_)
    queries = [[block[i].numpy() for block in tokens] for i in range(len(X))]
    references = [
        [block[i] for block in detector.reference_tokens_]
        for i in range(len(detector.reference_ids_))
    ]

    def scores(photo: Any, others: Any, place: str) -> np.ndarray:
        return patch_scores(
            photo, others, detector.neighborhoods, place, detector.radius,
            detector.n_neighbors,
        )  # fmt: skip

    def of_image(patches: np.ndarray) -> float:
        count = max(1, int(detector.image_share * patches.size + 1e-9))
        return float(np.sort(patches.ravel())[-count:].mean())

    places = ("anywhere", "same") if detector.location_ == "both" else (
        detector.location_,
    )  # fmt: skip
    left_out, new = [], []
    for place in places:
        left_out.append(
            [
                scores([b[0] for b in r], references[:i] + references[i + 1 :], place)
                for i, r in enumerate(references)
            ]
        )
        new.append([scores(photo, references, place) for photo in queries])

    def standardized(own: Any, others: Any) -> np.ndarray:
        stages = []
        for a, b in zip(own, others, strict=True):
            c, s = center_and_spread(np.asarray(a))
            stages.append(((np.asarray(a) - c) / s, (np.asarray(b) - c) / s))
        if len(stages) == 1:
            return stages[0][1]
        c, s = center_and_spread(np.maximum(stages[0][0], stages[1][0]))
        return (np.maximum(stages[0][1], stages[1][1]) - c) / s

    images = standardized(
        [[of_image(p) for p in place] for place in left_out],
        [[of_image(p) for p in place] for place in new],
    )
    return 3 - images, standardized(left_out, new)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"n_neighbors": 0.7, "location": "anywhere", "orientations": 4, "layers": [6]},
        {
            "n_neighbors": 2,
            "radius": 1,
            "neighborhoods": (3,),
            "image_share": 0.1,
            "layers": [2, 5],
        },
        {"location": "same", "layers": [3]},
    ],
)
def test_equals_plain_loops(parameters: Any, good: list[Any]) -> None:
    detector = ReferenceDetector("tiny", sigma=0, **parameters).fit(good[:4])
    X = few_colours(1, seed=1)
    margins, patches = _slow_margins(detector, X)
    np.testing.assert_allclose(detector.score_samples(X), margins, atol=2e-3)
    from clipad_sklearn._detectors.maps import upsampled

    expected = expit(upsampled(patches, (112, 112)) - 3)
    maps = detector.anomaly_maps(X, size="model")
    np.testing.assert_allclose(maps, expected, atol=1e-3)


# -- a photo is never compared with itself --------------------------------------------


def test_fit_predict_is_fit_then_predict(good: list[Any]) -> None:
    detector = ReferenceDetector("tiny", n_neighbors=0.3, contamination=0.25)
    verdicts = detector.fit_predict(good)
    np.testing.assert_array_equal(detector.predict(good), verdicts)
    np.testing.assert_array_equal(
        detector.score_samples(good), detector.reference_scores_
    )
    assert (verdicts == -1).sum() == 2  # a quarter of 9, rounded down
    maps = list(detector.iter_reference_maps())
    np.testing.assert_array_equal(maps, detector.anomaly_maps(good))
    assert maps[0].shape == (40, 48)
    assert detector.is_reference([*good[:2], *few_colours(1, seed=3)]).tolist() == [
        True, True, False,
    ]  # fmt: skip


def test_a_reference_elsewhere_in_a_call_is_recognised(
    fitted: ReferenceDetector, good: list[Any]
) -> None:
    """Each photo is scored on its own, references and others mixed."""
    mixed = [*few_colours(2, seed=1), good[4], *few_colours(1, seed=2), good[0]]
    margins = fitted.score_samples(mixed)
    assert margins[2] == fitted.reference_scores_[4]
    assert margins[4] == fitted.reference_scores_[0]
    alone = [fitted.score_samples([photo])[0] for photo in mixed]
    np.testing.assert_allclose(alone, margins, atol=1e-3)


@pytest.mark.parametrize("n_neighbors", [1, 0.3])
def test_partial_fit_equals_one_fit(n_neighbors: float, good: list[Any]) -> None:
    X = few_colours(3, seed=1)
    one = ReferenceDetector("tiny", n_neighbors=n_neighbors).fit(good)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        several = ReferenceDetector("tiny", n_neighbors=n_neighbors)
        several.partial_fit(good[:3]).partial_fit(good[3:4]).partial_fit(good[2:])
    assert several.n_copies_ == 2
    assert several.reference_ids_.tolist() == one.reference_ids_.tolist()
    for name in ("reference_scores_", "image_scale_", "patch_scale_"):
        np.testing.assert_allclose(
            getattr(several, name), getattr(one, name), atol=1e-3, rtol=1e-4
        )
    np.testing.assert_allclose(
        several.score_samples(X), one.score_samples(X), atol=1e-3
    )


def test_partial_fit_drops_a_calibration(good: list[Any]) -> None:
    detector = ReferenceDetector("tiny").fit(good[:5])
    detector.offset_ = 1.5
    detector.calibration_scores_ = np.arange(5.0)
    with pytest.warns(UserWarning, match="Calibrate again"):
        detector.partial_fit(good[5:])
    assert detector.offset_ == 0
    assert not hasattr(detector, "calibration_scores_")


def test_partial_fit_of_other_settings(good: list[Any]) -> None:
    detector = ReferenceDetector("tiny").fit(good[:5])
    before = pickle.dumps(vars(detector))
    for name, value in ("layers", [6]), ("orientations", 4):
        changed = pickle.loads(pickle.dumps(detector)).set_params(**{name: value})
        with pytest.raises(ValueError, match="fit all photos again"):
            changed.partial_fit(good[5:])
    assert pickle.dumps(vars(detector)) == before


# -- invariances ----------------------------------------------------------------------


def test_batches_order_and_copies(fitted: ReferenceDetector, good: list[Any]) -> None:
    X = few_colours(3, seed=1)
    expected = fitted.score_samples(X)
    with pytest.warns(UserWarning, match="2 of the 11 photos are copies"):
        other = ReferenceDetector(OpenCLIP("tiny", batch_size=2)).fit(
            [good[3], *good[::-1], good[3]]
        )
    assert other.n_copies_ == 2
    np.testing.assert_allclose(other.score_samples(X), expected, atol=1e-3)
    np.testing.assert_allclose(other.score_samples(X[::-1])[::-1], expected, atol=1e-3)


def test_threads(fitted: ReferenceDetector, good: list[Any]) -> None:
    import torch

    X = few_colours(3, seed=1)
    clip = OpenCLIP("tiny", embedding_cache=None)
    n_threads = torch.get_num_threads()
    try:
        for n in 1, 2:
            torch.set_num_threads(n)
            detector = ReferenceDetector(clip).fit(good)
            np.testing.assert_allclose(
                detector.score_samples(X), fitted.score_samples(X), atol=1e-3
            )
    finally:
        torch.set_num_threads(n_threads)


def test_max_references_draws_whatever_the_order(good: list[Any]) -> None:
    def kept(photos: list[Any], seed: int, batch_size: int = 32) -> set[str]:
        clip = OpenCLIP("tiny", batch_size=batch_size)
        detector = ReferenceDetector(clip, max_references=4, random_state=seed)
        assert len(detector.fit(photos).reference_ids_) == 4
        return set(detector.reference_ids_.tolist())

    assert kept(good, 0) == kept(good[::-1], 0) == kept(good, 0, batch_size=2)
    assert len({frozenset(kept(good, seed)) for seed in range(6)}) > 1
    detector = ReferenceDetector("tiny", max_references=4, random_state=0)
    detector.partial_fit(good[:5]).partial_fit(good[5:])
    assert set(detector.reference_ids_.tolist()) == kept(good, 0)


@few_references
def test_turned_references(good: list[Any]) -> None:
    """With 8 orientations a turned reference is at no distance."""
    square = few_colours(3, size=(112, 112))  # no resizing, which depends on the axis
    images = [np.rot90(square[0]), np.rot90(square[1], 2)[:, ::-1]]
    upright = ReferenceDetector("tiny").fit(square)
    turned_too = ReferenceDetector("tiny", orientations=8).fit(square)
    assert turned_too.reference_tokens_[0].shape[:2] == (3, 8)
    # The margin of an image score of 0.
    center, spread = turned_too.image_scale_[0]
    found = turned_too.score_samples(images)
    np.testing.assert_allclose(found, 3 + center / spread, atol=0.05)
    center, spread = upright.image_scale_[0]
    assert (upright.score_samples(images) < 3 + center / spread - 1).all()


def test_turned_keeps_the_shape() -> None:
    import torch

    pixels = torch.rand(2, 3, 4, 4)
    assert len({copy.numpy().tobytes() for copy in turned(pixels, 8)}) == 8
    assert len(turned(pixels, 4)) == 4
    assert [copy.shape for copy in turned(pixels[..., :3], 8)] == [(2, 3, 4, 3)] * 4
    assert len(turned(pixels, 1)) == 1


def test_place_matters_only_where_it_repeats() -> None:
    """A part that moves is normal anywhere, but not at the same place."""
    rng = np.random.default_rng(0)

    def photo(left: int) -> np.ndarray:
        image = np.full((112, 112, 3), 230) + rng.integers(0, 8, (112, 112, 3))
        image[42:70, left : left + 28] = (120, 30, 30)
        return image.astype(np.uint8)

    fixed = [photo(14) for _ in range(8)]
    moved = [photo(70)]
    margins = {
        location: ReferenceDetector("tiny", location=location).fit(fixed)
        for location in ("anywhere", "same", "both")
    }
    scores = {name: d.score_samples(moved)[0] for name, d in margins.items()}
    assert scores["same"] < 0
    assert scores["both"] < 0
    anywhere = margins["anywhere"]
    distances = next(anywhere._iter_patch_scores(moved))[0]
    same = next(margins["same"]._iter_patch_scores(moved))[0]
    assert same.max() > 2 * distances.max()


# -- bad input ----------------------------------------------------------------------


def test_no_photo() -> None:
    with pytest.raises(ValueError, match="X is None: fit it with good photos"):
        ReferenceDetector("tiny").fit(None)
    with pytest.raises(ValueError, match="minimum of 1"):
        ReferenceDetector("tiny").fit([])


def test_one_photo(good: list[Any]) -> None:
    with pytest.warns(UserWarning, match=r"Fewer than 4 references \(1\).*a guess"):
        detector = ReferenceDetector("tiny").fit(good[:1])
    assert np.isnan(detector.reference_scores_).all()
    assert detector.location_ == "anywhere"
    assert np.isfinite(detector.score_samples(good[1:])).all()
    with pytest.raises(ImageReadError, match="only reference") as caught:
        detector.predict([*good[1:3], good[0], good[4], good[0]])
    assert [index for index, _, _ in caught.value.failures] == [2, 4]
    for name in ("contamination", "pixel_contamination"):
        with (
            pytest.warns(UserWarning, match="Fewer than 4"),
            pytest.raises(ValueError, match="single reference"),
        ):
            clone(detector).set_params(**{name: 0.1}).fit(good[:1])
    with pytest.raises(ValueError, match="nothing is left to compare"):
        clone(detector).set_params(n_neighbors=0.5).fit(good[:1])


def test_photos_that_are_all_the_same(good: list[Any]) -> None:
    with (
        pytest.warns(UserWarning, match="4 of the 5 photos are copies"),
        pytest.warns(UserWarning, match=r"Fewer than 4 references \(1\)"),
    ):
        detector = ReferenceDetector("tiny").fit([good[0]] * 5)
    assert detector.reference_ids_.shape == (1,)


def test_few_references(good: list[Any]) -> None:
    with pytest.warns(UserWarning, match=r"\(3\): .* location='both' is 'anywhere'"):
        detector = ReferenceDetector("tiny").fit(good[:3])
    assert detector.location_ == "anywhere"
    assert np.isfinite(detector.reference_scores_).all()


@few_references
@pytest.mark.parametrize(("n", "warned"), [(2, True), (3, True), (5, True), (8, False)])
def test_a_share_of_few_references(n: int, warned: bool, good: list[Any]) -> None:
    detector = ReferenceDetector("tiny", n_neighbors=0.3)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        detector.fit(good[:n])
    messages = [str(warning.message) for warning in record]
    assert any("From 8 photos on" in message for message in messages) == warned


def test_photos_of_several_sizes(good: list[Any]) -> None:
    detector = ReferenceDetector("tiny").fit([*good[:4], *few_colours(2, 7, (64, 30))])
    assert detector.reference_sizes_[-1].tolist() == [64, 30]
    shapes = [anomaly_map.shape for anomaly_map in detector.iter_reference_maps()]
    assert shapes[3:] == [(40, 48), (64, 30), (64, 30)]


def test_an_unreadable_photo_is_named(good: list[Any], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no photo")
    detector = ReferenceDetector("tiny")
    with pytest.raises(ImageReadError) as error:
        detector.fit([*good[:5], tmp_path / "bad.png", tmp_path / "missing.png"])
    assert [failure[0] for failure in error.value.failures] == [5, 6]
    assert not hasattr(detector, "reference_ids_")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("n_neighbors", [0, -1, 1.5, 0.0, "3", True]),
        ("location", ["here", None]),
        ("radius", [-1, 0.5, True]),
        ("layers", [[], [0], [7], [3, 2], 3, "12", [True]]),
        ("neighborhoods", [[], [2], [0], [-1], 3, [True]]),
        ("orientations", [2, 0, 16, True]),
        ("random_state", [True, -1, "a"]),
        ("image_share", [0, 1.5, "all"]),
        ("sigma", [-1]),
        ("max_references", [0, 1, 2.5]),
        ("max_patches", [0, 1, 2.5]),
        ("on_error", ["nan", "ignore", None]),
        ("contamination", [0, 0.6]),
        ("pixel_contamination", [0, 0.6]),
    ],
)
def test_parameters_are_checked(name: str, values: Any, good: list[Any]) -> None:
    for value in values:
        detector = ReferenceDetector("tiny", **{name: value})
        with pytest.raises(ValueError, match=f"^{name}=.*: expected"):
            detector.fit(good[:5])


def test_unreadable_photos_are_left_out_on_demand(
    good: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no photo")
    bad = [str(tmp_path / "bad.png"), str(tmp_path / "missing.png")]
    X, given = few_colours(2, seed=1), [bad[0], *good[:3], bad[1], *good[3:5]]
    plain = ReferenceDetector("tiny").fit(good[:5])
    for batch_size in 2, 32:
        clip = OpenCLIP("tiny", batch_size=batch_size)
        detector = ReferenceDetector(clip, on_error="skip")
        with pytest.warns(
            UserWarning, match="2 of the 7 photos cannot be read"
        ) as said:
            detector.fit(given)
        assert len(said) == 1
        assert all(name in str(said[0].message) for name in bad)
        assert detector.reference_ids_.tolist() == plain.reference_ids_.tolist()
        np.testing.assert_allclose(
            detector.score_samples(X), plain.score_samples(X), atol=1e-3
        )
    with pytest.warns(UserWarning, match="1 of the 2 photos cannot be read"):
        detector.partial_fit([bad[0], good[5]])
    assert len(detector.reference_ids_) == 6
    with pytest.raises(ImageReadError, match="2 images could not be read"):
        clone(detector).fit(bad)
    with pytest.raises(ImageReadError):  # it is about `fit` only
        detector.predict(bad)
    with pytest.raises(ValueError, match="inside a TiledDetector"):
        TiledDetector(clone(detector)).fit(good[:4])


# -- what does not count --------------------------------------------------------------


def _with_spot(photo: np.ndarray, seed: int) -> np.ndarray:
    """A photo with a number of its own, printed in the upper left."""
    spotted = photo.copy()
    rng = np.random.default_rng(seed)
    spotted[:10, :12] = rng.integers(0, 256, (10, 12, 3))
    return spotted


@pytest.mark.parametrize("location", ["both", "anywhere"])
def test_what_is_ignored_does_not_count(location: str, good: list[Any]) -> None:
    photo = few_colours(1, seed=1)[0]
    spotted = _with_spot(photo, 0)
    mask = np.zeros((40, 48), np.uint8)
    mask[:20, :24] = 255
    corners = [(0, 0), (24, 0), (24, 20), (0, 20)]
    plain = ReferenceDetector("tiny", location=location, layers=[1]).fit(good)
    found = []
    for ignore in mask, corners:
        detector = clone(plain).set_params(ignore=ignore).fit(good)
        with_spot = next(detector.iter_anomaly_maps([spotted]))
        assert (with_spot[mask > 0] == 0).all()
        assert (with_spot[mask == 0] > 0).all()
        small = detector.anomaly_maps([spotted], size=(20, 24))[0]
        assert (small[:10, :12] == 0).all()
        np.testing.assert_array_equal(
            detector.score_samples(good), detector.reference_scores_
        )
        maps = list(detector.iter_reference_maps())
        assert (np.array(maps)[:, mask > 0] == 0).all()
        found.append(detector.score_samples([photo, spotted]))
    np.testing.assert_array_equal(*found)
    # By plain loops over the patches that count.
    patches = next(detector._iter_patch_scores([photo]))[0][0].astype(float)
    n = patches.shape[-1]
    counted = [(r, c) for r in range(n) for c in range(n) if r >= n / 2 or c >= n / 2]
    count = max(1, int(0.01 * len(counted) + 1e-9))
    scores = [np.sort([p[r, c] for r, c in counted])[-count:].mean() for p in patches]
    if location == "anywhere":
        (center, spread), (score,) = detector.image_scale_[0], scores
        margin = 3 - (score - center) / spread
        np.testing.assert_allclose(found[0][0], margin, atol=1e-3)
    # The spot shows in the score of one that looks everywhere.
    seen = plain.score_samples([photo, spotted])
    assert abs(found[0][1] - found[0][0]) < abs(seen[1] - seen[0]) / 2


def test_ignoring_cannot_fit(good: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"ignore of shape \(4, 4\): expected a mask"):
        ReferenceDetector("tiny", ignore=np.ones((4, 4))).fit(good)
    with pytest.raises(ValueError, match="covers all patches"):
        ReferenceDetector("tiny", ignore=np.ones((40, 48))).fit(good)
    clip = OpenCLIP("tiny", resize="crop")
    with pytest.raises(ValueError, match="With resize='crop' patches do not cover"):
        ReferenceDetector(clip, ignore=np.eye(40, 48)).fit(good)
    tiled = TiledDetector(ReferenceDetector("tiny", ignore=np.eye(40, 48)))
    with pytest.raises(ValueError, match="inside a TiledDetector"):
        tiled.fit(good[:4])


# -- inside scikit-learn --------------------------------------------------------------


def test_searches() -> None:
    data = make_defect_images(14, size=64, families="hex nut", random_state=0)
    grid = [
        {"n_neighbors": [1, 0.5]},
        {"location": ["anywhere", "same"]},
        {"layers": [[6], [3, 6]]},
    ]
    detector = ReferenceDetector("tiny")
    for cv in ZeroShotSplit(), StratifiedKFold(2, shuffle=True, random_state=0):
        search = GridSearchCV(detector, grid, cv=cv)
        search.fit(data.images, data.target)
        results = search.cv_results_["mean_test_score"]
        assert np.isfinite(results).all()
        assert len(set(results)) > 1
        assert search.best_estimator_.score(data.images, data.target) > 0.3
    margins = cross_val_predict(detector, data.images, cv=3, method="decision_function")
    assert margins.shape == (14,)


def test_no_model_is_loaded_for_what_needs_none(
    fitted: ReferenceDetector, tmp_path: Path
) -> None:
    joblib.dump(fitted, tmp_path / "detector.joblib")
    code = f"""
import sys, joblib, pickle
from sklearn.base import clone
from clipad_sklearn import ReferenceDetector
detector = joblib.load({str(tmp_path / "detector.joblib")!r})
clone(detector), repr(detector), pickle.dumps(detector), detector.get_params()
maps = list(detector.iter_reference_maps())
assert len(maps) == 9
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_saved_with_skops(fitted: ReferenceDetector) -> None:
    sio = pytest.importorskip("skops.io")
    data = sio.dumps(fitted)
    types = sio.get_untrusted_types(data=data)
    assert {name.rpartition(".")[2] for name in types} <= {*clipad_sklearn.__all__}
    again = sio.loads(data, trusted=types)
    X = few_colours(2, seed=1)
    np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))


def test_tokens_in_a_mapped_file(fitted: ReferenceDetector, tmp_path: Path) -> None:
    joblib.dump(fitted, tmp_path / "detector.joblib")
    mapped = joblib.load(tmp_path / "detector.joblib", mmap_mode="r")
    assert not mapped.reference_tokens_[0].flags.writeable
    X = few_colours(1, seed=1)
    np.testing.assert_array_equal(mapped.score_samples(X), fitted.score_samples(X))


def test_the_pass_feeds_the_embedding_cache(good: list[Any], tmp_path: Path) -> None:
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, photo in zip(paths, good[:5], strict=True):
        Image.fromarray(photo).save(path)
    clip = OpenCLIP("tiny", embedding_cache=tmp_path / "cache")
    detector = ReferenceDetector(clip).fit(paths[:4])
    detector.score_samples(paths)
    cache = open_cache(clip.embedding_cache)
    assert cache is not None
    n_entries = cache.info()["entries"]
    assert n_entries >= 5
    plain = OpenCLIP("tiny", embedding_cache=None).encode_image(paths)
    np.testing.assert_allclose(clip.encode_image(paths), plain, atol=1e-6)
    # No embedding more; one entry may say by which names they are kept.
    assert cache.info()["entries"] - n_entries in (0, 1)
    # None is a cache too.
    off = ReferenceDetector(OpenCLIP("tiny", embedding_cache=None)).fit(paths[:4])
    np.testing.assert_allclose(off.score_samples(paths), detector.score_samples(paths))


# -- any tower ----------------------------------------------------------------------

_VIT = {"patch_size": 16, "width": 64, "layers": 4, "head_width": 32}
_TOWERS: dict[str, dict[str, Any]] = {
    "stock": {**_VIT, "image_size": [48, 64]},
    "attention pooling": {
        **_VIT, "image_size": 64, "attentional_pool": True, "attn_pooler_heads": 2,
    },
    "ResNet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64},
    "ConvNeXt": {"timm_model_name": "convnext_atto", "image_size": 96, "timm_pool": ""},
    "EVA": {
        "timm_model_name": "eva02_tiny_patch14_224", "image_size": 224,
        "timm_pool": "token", "timm_proj": None,
    },
    "PE": {
        "timm_model_name": "vit_pe_core_tiny_patch16_384", "image_size": 384,
        "timm_pool": "map", "timm_proj": None,
    },
    "SigLIP 2": {
        "timm_model_name": "vit_base_patch32_siglip_256", "image_size": 256,
        "timm_pool": "map", "timm_proj": "none",
    },
    "ViTamin": {
        "timm_model_name": "vitamin_small_224", "image_size": 224, "timm_pool": "",
    },
    "FastViT": {
        "timm_model_name": "fastvit_mci0", "image_size": 256, "timm_pool": "avg",
        "timm_proj": None,
    },
}  # fmt: skip


def _random_clip(folder: Path, vision: dict[str, Any]) -> OpenCLIP:
    """A CLIP with random weights and a small text tower."""
    text = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2}
    width = 768 if vision.get("timm_proj") == "none" else 64
    config = {
        "model_cfg": {
            "embed_dim": width,
            "vision_cfg": vision,
            "text_cfg": {**text, "layers": 1},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return OpenCLIP(str(folder), "random", embedding_cache=None)


@few_references
@pytest.mark.parametrize("name", list(_TOWERS))
def test_towers(name: str, good: list[Any], tmp_path: Path) -> None:
    import torch

    clip = _random_clip(tmp_path, _TOWERS[name])
    detector = ReferenceDetector(clip).fit(good[:2])
    tower = PatchTower(load(clip))
    assert detector.layers_[-1] == tower.depth
    shapes = [tower.shapes[block - 1] for block in detector.layers_]
    assert [x.shape for x in detector.reference_tokens_] == [(2, 1, *s) for s in shapes]
    again = pickle.loads(pickle.dumps(detector))
    assert np.isfinite(again.score_samples(good[2:3])).all()
    maps = again.anomaly_maps(good[2:3], size="model")
    assert maps.shape == (1, *tower.input_size)
    assert maps.std() > 0
    # The pass for tokens gives the embedding too.
    pixels = torch.rand(1, 3, *tower.input_size)
    _, embeddings = tower.encode(pixels, [1])
    np.testing.assert_allclose(embeddings, tower.model.encode_pixels(pixels), atol=1e-5)


@few_references
def test_size_of_a_saved_detector(good: list[Any]) -> None:
    """16 photos of the default CLIP are less than 40 MB: here are two of them."""
    clip = OpenCLIP(pretrained="random", embedding_cache=None)
    assert clip.model_name == OpenCLIP().model_name
    detector = ReferenceDetector(clip).fit(good[:2])
    assert detector.reference_tokens_[0].shape[0] == 2
    assert len(pickle.dumps(detector)) < 40e6 * 2 / 16
    clear_models()


def test_a_tower_without_a_grid(tmp_path: Path, good: list[Any]) -> None:
    vision = {"timm_model_name": "mixer_s32_224", "image_size": 224, "timm_pool": "avg"}
    clip = _random_clip(tmp_path, vision)
    visual = load(clip).model.visual
    visual.trunk.forward_intermediates = None  # as of trunks that have none
    with pytest.raises(ValueError, match=r"keeps a grid .*MlpMixer.*embeddings work"):
        ReferenceDetector(clip).fit(good)
