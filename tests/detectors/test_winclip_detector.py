"""`WinCLIPDetector` against closed forms and a slow reference."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import reference_maps as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from clipad_sklearn import (
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.vision_tower import VisionTower
from clipad_sklearn._detectors.winclip import harmonic_maps, window_patches
from clipad_sklearn.metrics import get_scorer
from clipad_sklearn.model_selection import ZeroShotSplit

WORDS = {"n_pairs": 100, "classifier": LogisticRegression(), "random_state": 0}


# -- closed forms ----------------------------------------------------------------


def test_number_and_order_of_windows() -> None:
    assert len(window_patches((15, 15), (2, 2))) == 196
    assert len(window_patches((15, 15), (3, 3))) == 169
    np.testing.assert_array_equal(
        window_patches((2, 3), (1, 2)), [[0, 1], [1, 2], [3, 4], [4, 5]]
    )
    assert window_patches((15, 15), (2, 2)).tolist() == reference.windows((15, 15), 2)


def test_harmonic_fusion_by_hand() -> None:
    windows = window_patches((3, 3), (2, 2))
    scores = np.array([[1, 0.75, 0.5, 0.25]])
    fused = harmonic_maps([1 / scores], [windows], (3, 3))[0]
    expected = [[1, 6 / 7, 0.75], [2 / 3, 0.48, 0.375], [0.5, 1 / 3, 0.25]]
    np.testing.assert_allclose(fused, expected)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(3, 6), columns=st.integers(3, 6), seed=st.integers(0, 2**32 - 1)
)
def test_harmonic_fusion_is_the_loop(rows: int, columns: int, seed: int) -> None:
    grid, sizes = (rows, columns), (1, 2, 3)
    rng = np.random.default_rng(seed)
    windows = [window_patches(grid, (size, size)) for size in sizes]
    scores = [rng.uniform(1e-6, 1, len(patches)) for patches in windows]
    whole = window_patches(grid, grid)
    image_score = rng.uniform(1e-6, 1)
    fused = harmonic_maps(
        [*(1 / s[np.newaxis] for s in scores), np.array([[1 / image_score]])],
        [*windows, whole],
        grid,
    )[0]
    np.testing.assert_allclose(
        fused, reference.fuse(grid, sizes, scores, image_score), rtol=1e-9
    )
    # Never above the arithmetic mean, and constant for constant scores.
    one_scale = harmonic_maps([1 / scores[1][np.newaxis]], [windows[1]], grid)[0]
    for patch, value in enumerate(one_scale.ravel()):
        covering = scores[1][(windows[1] == patch).any(axis=1)]
        assert value <= covering.mean() * (1 + 1e-12)
    constant = [np.full((1, len(patches)), 1 / 0.3) for patches in windows]
    np.testing.assert_allclose(harmonic_maps(constant, windows, grid), 0.3)


# -- against the slow reference ------------------------------------------------------


def _pixels(clip: OpenCLIP, images: list[np.ndarray]) -> torch.Tensor:
    transform = load(clip).transform("squash")
    return torch.stack([transform(Image.fromarray(image)) for image in images])


def test_maps_of_tiny(photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("tiny")
    for temperature in (0.05, 0.5):
        scorer = PromptDetector(clip, temperature=temperature)
        detector = WinCLIPDetector(clip, scorer=scorer).fit()
        maps = detector.anomaly_maps(photos[:3], size="model")
        expected = reference.winclip_map(
            load(clip).model.visual,
            _pixels(clip, photos[:3])[1],
            (2, 3),
            detector.scorer_.prototypes_[0],
            temperature,
        )
        np.testing.assert_allclose(maps[1], expected, atol=1e-6, rtol=1e-3)
        assert expected.std() > 1e-3 * expected.mean()


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16", "ViT-B-16-plus-240"])
def test_windows_of_large_models(
    name: str, photos: list[np.ndarray], rng: np.random.Generator
) -> None:
    clip = OpenCLIP(name, "random")
    model = load(clip)
    tower = VisionTower(model)
    pixels = _pixels(clip, photos[:2])
    chosen = [
        rng.permutation(window_patches(tower.grid, (size, size)))[:5]
        for size in (2, 3)
    ]  # fmt: skip
    whole = window_patches(tower.grid, tower.grid)
    embeddings = tower.encode_windows(pixels, [*chosen, whole], 100)
    np.testing.assert_allclose(
        embeddings[:, -1], model.encode_pixels(pixels), atol=1e-5
    )
    tokens = reference.embed(model.model.visual, pixels[1])
    for window, embedding in zip(
        [patches for scale in chosen for patches in scale], embeddings[1], strict=False
    ):
        expected = reference.encode_window(model.model.visual, tokens, window.tolist())
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
    clear_models()


def test_map_of_a_large_model(photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("ViT-B-32", "random", batch_size=1)
    scorer = PromptDetector(clip, prompts="clip-ac")
    detector = WinCLIPDetector(clip, scorer=scorer, window_sizes=(2,)).fit()
    maps = detector.anomaly_maps(photos[:2], size="model")
    expected = reference.winclip_map(
        load(clip).model.visual,
        _pixels(clip, photos[:2])[1],
        (2,),
        detector.scorer_.prototypes_[0],
        0.01,
    )
    np.testing.assert_allclose(maps[1], expected, atol=1e-4)
    clear_models()


# -- scores, scorers and settings -----------------------------------------------------


def test_image_score_is_the_scorer_on_the_whole_image(photos: list[np.ndarray]) -> None:
    embeddings = OpenCLIP("tiny").encode_image(photos)
    words = RandomWordDetector("tiny", **WORDS)
    for scorer in (
        words,
        PromptDetector("tiny"),
        FusionDetector([("words", words), ("prompts", PromptDetector("tiny"))]),
    ):
        detector = WinCLIPDetector("tiny", scorer=scorer).fit(photos)
        expected = clone(scorer).fit(embeddings).score_samples(embeddings)
        np.testing.assert_allclose(detector.score_samples(photos), expected)
        assert detector.anomaly_maps(photos[:1])[0].std() > 0
    default = WinCLIPDetector("tiny").fit()
    prompts = PromptDetector("tiny").fit()
    np.testing.assert_allclose(
        default.score_samples(photos), prompts.score_samples(embeddings)
    )


def test_settings_change_the_map(photos: list[np.ndarray]) -> None:
    def map_of(**params: Any) -> np.ndarray:
        return WinCLIPDetector("tiny", **params).fit().anomaly_maps(photos[:1])[0]

    first = map_of()
    assert not np.allclose(map_of(window_sizes=(2,)), first)
    assert not np.allclose(map_of(image_scale=False), first)
    assert not np.allclose(map_of(window_sizes=[(1, 4)]), first)
    np.testing.assert_allclose(map_of(window_sizes=[(2, 2), 3]), first, atol=1e-6)


def test_the_scorer_is_not_touched(photos: list[np.ndarray]) -> None:
    scorer = PromptDetector("tiny")
    detector = WinCLIPDetector("tiny", scorer=scorer).fit(photos)
    assert not hasattr(scorer, "prototypes_")
    assert hasattr(detector.scorer_, "prototypes_")
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(
        again.anomaly_maps(photos[:1]), detector.anomaly_maps(photos[:1])
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"window_sizes": ()}, "window_sizes is empty"),
        ({"window_sizes": 2}, r"window_sizes=2: expected a sequence"),
        ({"window_sizes": (0,)}, "from 1 to the"),
        ({"window_sizes": (2, 10_000)}, "from 1 to the"),
        ({"window_sizes": (1.5,)}, "whole numbers"),
        ({"window_sizes": ("2",)}, "whole numbers"),
        ({"window_sizes": [(2, 2, 2)]}, r"pairs \(rows, columns\)"),
        ({"scorer": IsolationForest()}, "does not give margins"),
        ({"scorer": LogisticRegression()}, "does not give margins"),
        ({"contamination": 0.1}, "X is None"),
        ({"contamination": 2}, "contamination=2"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    detector = WinCLIPDetector("tiny", **params)
    with pytest.raises(ValueError, match=message):
        detector.fit()


def test_a_scorer_of_another_clip() -> None:
    scorer = PromptDetector(OpenCLIP("ViT-S-32-alt", "random"), prompts="clip-ac")
    with pytest.raises(ValueError, match="Both need the same clip"):
        WinCLIPDetector("tiny", scorer=scorer).fit()
    clear_models()


def test_search_by_pixels(photos: list[np.ndarray], rng: np.random.Generator) -> None:
    masks = [None, *(rng.random(photo.shape[:2]) < 0.2 for photo in photos[1:6])]
    words = RandomWordDetector("tiny", **WORDS)
    search = GridSearchCV(
        WinCLIPDetector("tiny", scorer=words),
        {"window_sizes": [(1,), (2, 3)], "scorer__n_pairs": [50, 100]},
        scoring=get_scorer("pixel_auroc"),
        cv=ZeroShotSplit(),
        error_score="raise",
    )
    search.fit(photos[:6], masks)
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 4
    assert np.ptp(scores) > 0
    best = search.best_estimator_
    assert search.best_score_ == get_scorer("pixel_auroc")(best, photos[:6], masks)
