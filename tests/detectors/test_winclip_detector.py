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

pytestmark = pytest.mark.usefixtures("on_processor")

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


@pytest.mark.parametrize("name", ["ViT-S-32-alt", "ViT-B-16-plus-240"])
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
    clip = OpenCLIP("ViT-S-32-alt", "random", batch_size=1)
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
        ({"window_sizes": (True,)}, "from 1 to the"),
        ({"window_sizes": [(True, 2)]}, "from 1 to the"),
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


# -- references (WinCLIP+) ---------------------------------------------------------


def reference_scales(photo: np.ndarray) -> list[np.ndarray]:
    """Tokens of patches and of windows of two sizes, rounded to 16 bits."""
    model = load(OpenCLIP("tiny"))
    visual = model.model.visual
    pixels = model.transform("squash")(Image.fromarray(photo))
    with torch.no_grad():
        tokens = reference.embed(visual, pixels)
        x = reference.layer_norm(visual.ln_pre, tokens)
        for block in visual.transformer.resblocks:
            queries = reference.queries_keys_values(block, x)
            x = x + reference.attention(block.attn, *queries)
            x = x + reference.mlp(block, x)
        scales = [reference.layer_norm(visual.ln_post, x[1:]).numpy()]
    for size in (2, 3):
        windows = reference.windows(visual.grid_size, size)
        scales.append(
            np.stack([reference.encode_window(visual, tokens, w) for w in windows])
        )
    unit = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in scales]
    return [s.astype(np.float16).astype(np.float64) for s in unit]


def slow_references(photo: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """The map F of one photo, patch by patch and window by window."""
    grid = load(OpenCLIP("tiny")).model.visual.grid_size
    own, known = reference_scales(photo), [reference_scales(one) for one in others]
    total = np.zeros(grid[0] * grid[1])
    for scale, size in enumerate((None, 2, 3)):
        distances = [
            min((1 - np.max(one[scale] @ token)) / 2 for one in known)
            for token in own[scale]
        ]
        if size is None:
            total += distances
            continue
        windows = reference.windows(grid, size)
        for patch in range(len(total)):
            covering = [
                d for d, w in zip(distances, windows, strict=True) if patch in w
            ]
            total[patch] += len(covering) / sum(1 / max(d, 1e-6) for d in covering)
    return (total / 3).reshape(grid)


def test_references_are_the_loop(photos: list[np.ndarray]) -> None:
    detector = WinCLIPDetector("tiny", references=True).fit(photos[:3])
    plain = WinCLIPDetector("tiny").fit()
    size = load(OpenCLIP("tiny")).model.visual.image_size
    # The second is a reference itself, and left out.
    for photo, others in ((photos[5], photos[:3]), (photos[1], photos[:3:2])):
        few_shot = slow_references(photo, others)
        of_words = plain.anomaly_maps([photo], size="model")[0]
        expected = (of_words + reference.enlarge(few_shot, size[0])) / 2
        found = detector.anomaly_maps([photo], size="model")[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        p = (plain.predict_proba([photo])[0, 0] + few_shot.max()) / 2
        np.testing.assert_allclose(
            detector.predict_proba([photo])[0], [p, 1 - p], atol=1e-4
        )


def test_a_reference_is_not_compared_with_itself(photos: list[np.ndarray]) -> None:
    detector = WinCLIPDetector(
        "tiny", window_sizes=(3,), references=True, contamination=0.25
    )
    verdicts = detector.fit_predict(photos[:4])
    assert (verdicts == -1).sum() == 1
    np.testing.assert_array_equal(detector.predict(photos[:4]), verdicts)
    scores = detector.score_samples(photos[:6])
    one_by_one = [detector.score_samples([photo])[0] for photo in photos[:6]]
    np.testing.assert_allclose(one_by_one, scores, atol=1e-4)
    others = [photos[0], *photos[2:4]]
    without = clone(detector).set_params(contamination="auto").fit(others)
    np.testing.assert_allclose(
        without.score_samples(photos[1:2]), scores[1:2], atol=1e-4
    )
    backwards = clone(detector).fit(photos[3::-1])
    np.testing.assert_allclose(backwards.score_samples(photos[:6]), scores, atol=1e-4)
    assert detector.is_reference(photos[2:6]).tolist() == [True, True, False, False]
    assert not WinCLIPDetector("tiny").fit().is_reference(photos[:2]).any()
    with pytest.warns(UserWarning, match="2 of the 5 images are copies of others"):
        twice = clone(detector).fit([*photos[:3], photos[0], photos[1]])
    assert len(twice.reference_ids_) == 3


def test_references_are_kept_small(photos: list[np.ndarray]) -> None:
    detector = WinCLIPDetector("tiny", references=True).fit(photos[:2])
    again = pickle.loads(pickle.dumps(detector))
    assert again.reference_patches_.dtype == np.float16
    assert again.reference_windows_.dtype == np.float16
    assert len(again.reference_windows_) == 2
    np.testing.assert_array_equal(
        again.score_samples(photos[:3]), detector.score_samples(photos[:3])
    )
    names = ["bolt", "nut", "bolt"]
    np.testing.assert_allclose(
        detector.score_samples(photos[2:5], class_name=names)[1],
        detector.score_samples(photos[3:4], class_name="nut")[0],
        atol=1e-4,
    )


def test_references_need_images(photos: list[np.ndarray]) -> None:
    detector = WinCLIPDetector("tiny", references=True)
    with pytest.raises(ValueError, match="references=True compares with the images"):
        detector.fit()
    detector.fit(photos[:1])
    assert np.isfinite(detector.score_samples(photos[1:3])).all()
    with pytest.raises(ValueError, match="nothing to compare it with"):
        detector.score_samples(photos[:2])
    with pytest.raises(ValueError, match="nothing to compare it with"):
        clone(detector).set_params(contamination=0.5).fit(photos[:1])
    later = WinCLIPDetector("tiny").fit().set_params(references=True)
    with pytest.raises(ValueError, match="fit again"):
        later.score_samples(photos[:1])
