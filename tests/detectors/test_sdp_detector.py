"""`SDPDetector` against closed forms and a slow reference."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import reference_maps as reference
import torch
from PIL import Image
from sklearn.model_selection import GridSearchCV

from clipad_sklearn import OpenCLIP, PromptDetector, SDPDetector, clear_models
from clipad_sklearn._clip.blocks import project
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.vision_tower import VisionTower, self_attend
from clipad_sklearn._detectors.sdp import stage_ends
from clipad_sklearn.metrics import get_scorer
from clipad_sklearn.model_selection import ZeroShotSplit

pytestmark = pytest.mark.usefixtures("on_processor")


def _pixels(clip: OpenCLIP, images: list[np.ndarray]) -> torch.Tensor:
    transform = load(clip).transform("squash")
    return torch.stack([transform(Image.fromarray(image)) for image in images])


# -- stages ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "ends"),
    [
        (12, (3, 6, 9, 12)),
        (24, (6, 12, 18, 24)),
        (32, (8, 16, 24, 32)),
        (6, (2, 3, 5, 6)),
        (5, (1, 3, 4, 5)),
        (2, (1, 2)),
        (1, (1,)),
    ],
)
def test_four_equal_stages(depth: int, ends: tuple[int, ...]) -> None:
    assert stage_ends(None, depth) == ends


@pytest.mark.parametrize("alias_compat", [False, True])
def test_every_stage_of_tiny(alias_compat: bool, photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("tiny")
    _compare_stages(clip, photos, alias_compat, None)
    _compare_stages(clip, photos, alias_compat, (1, 3))


def test_every_stage_of_a_large_model(photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("ViT-S-32-alt", "random")
    for alias_compat in (False, True):
        _compare_stages(clip, photos, alias_compat, None)
    clear_models()


def _compare_stages(
    clip: OpenCLIP, photos: list[np.ndarray], alias_compat: bool, layers: Any
) -> None:
    tower = VisionTower(load(clip))
    ends = stage_ends(layers, tower.depth)
    pixels = _pixels(clip, photos[:2])
    rng = np.random.default_rng(1)
    prototypes = rng.standard_normal((1, 2, tower.model.embedding_width))
    prototypes /= np.linalg.norm(prototypes, axis=2, keepdims=True)
    stages, _ = tower.dual_path_scores(pixels, ends, alias_compat, prototypes)
    of_reference = reference.dual_path(tower.visual, pixels[1], ends, alias_compat)
    expected = reference.sdp_stage_maps(tower.visual, of_reference, prototypes[0])
    assert len(stages) == len(expected) == len(ends)
    for stage, wanted in zip(stages, expected, strict=True):
        np.testing.assert_allclose(stage[1], wanted, atol=1e-4)
        assert wanted.std() > 1e-3
    # The original tokens too, on which layers are trained.
    tokens = tower.original_tokens(pixels, ends, alias_compat)[1]
    for got, (_, original) in zip(tokens, of_reference, strict=True):
        np.testing.assert_allclose(got, original[1:].numpy(), atol=1e-4)


def test_original_path_is_the_forward_pass(photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("tiny")
    model = load(clip)
    tower = VisionTower(model)
    pixels = _pixels(clip, photos[:3])
    ends = stage_ends(None, tower.depth)
    last = {}
    with model.inference():
        stock = model.model.visual.forward_intermediates(pixels, output_fmt="NLC")
        for alias_compat in (False, True):
            stages = [x for _, x in tower.stages(pixels, ends, alias_compat)]
            last[alias_compat] = tower.pool(stages[-1])
            same = [
                torch.allclose(
                    stages[i][:, 1:],
                    stock["image_intermediates"][end - 1],
                    atol=1e-5,
                )
                for i, end in enumerate(ends)
            ]
            # The artefact changes all stages but the last.
            assert same == ([True] * 4 if not alias_compat else [False] * 3 + [True])
    embeddings = torch.nn.functional.normalize(last[False], dim=-1).numpy()
    np.testing.assert_allclose(embeddings, model.encode_pixels(pixels), atol=1e-5)
    assert torch.equal(last[False], last[True])


def test_a_stage_starts_anew(photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("tiny")
    tower = VisionTower(load(clip))
    pixels = _pixels(clip, photos[:1])
    with load(clip).inference():
        both = [surgery for surgery, _ in tower.stages(pixels, (1, 2), False)]
        summed = [surgery for surgery, _ in tower.stages(pixels, (2,), False)]
    torch.testing.assert_close(both[0] + both[1], summed[0])


def test_value_attention_averages() -> None:
    # Rows of weights sum to one: equal values come through unchanged.
    tower = VisionTower(load(OpenCLIP("tiny")))
    block = tower.blocks[0]
    values = torch.randn(1, 1, tower.width).expand(2, 5, -1)
    attended = self_attend(block, torch.cat([values] * 3, dim=-1))
    torch.testing.assert_close(attended, values)
    assert project(block, values).shape == (2, 5, 3 * tower.width)


# -- maps and scores ------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0, 4.0])
def test_maps_of_tiny(sigma: float, photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("tiny")
    detector = SDPDetector(clip, sigma=sigma).fit()
    maps = detector.anomaly_maps(photos[:3], size="model")
    visual = load(clip).model.visual
    pixels = _pixels(clip, photos[:3])
    ends = stage_ends(None, len(visual.transformer.resblocks))
    stages = reference.sdp_stage_maps(
        visual,
        reference.dual_path(visual, pixels[2], ends, False),
        detector.prompt_detector_.prototypes_[0],
    )
    published = reference.sdp_map(stages, pixels.shape[-1], max(sigma, 1e-9))
    np.testing.assert_allclose(maps[2], 0.5 + published / (2 * len(ends)), atol=1e-4)


def test_anomalous_and_normal_channel_are_opposite(photos: list[np.ndarray]) -> None:
    clip = OpenCLIP("tiny")
    tower = VisionTower(load(clip))
    prototypes = PromptDetector(clip).fit().prototypes_
    pixels = _pixels(clip, photos[:2])
    ends = stage_ends(None, tower.depth)
    one, _ = tower.dual_path_scores(pixels, ends, False, prototypes)
    other, _ = tower.dual_path_scores(pixels, ends, False, prototypes[:, ::-1].copy())
    np.testing.assert_allclose(one, -other, atol=1e-6)


def test_image_score_is_that_of_prompts(photos: list[np.ndarray]) -> None:
    embeddings = OpenCLIP("tiny").encode_image(photos)
    prompts = PromptDetector("tiny", prompts="clip-ad", aggregation="dbscan").fit()
    np.testing.assert_allclose(
        SDPDetector("tiny").fit().score_samples(photos),
        prompts.score_samples(embeddings),
    )


def test_published_image_score(photos: list[np.ndarray]) -> None:
    detector = SDPDetector("tiny", image_score="prompts+map").fit(photos)
    margins = detector.score_samples(photos)
    plain = SDPDetector("tiny").fit()
    parts = np.stack(
        [
            plain.predict_proba(photos)[:, 0],
            plain.anomaly_maps(photos, size="model").max(axis=(1, 2)),
        ]
    )
    low, high = parts.min(axis=1, keepdims=True), parts.max(axis=1, keepdims=True)
    published = ((parts - low) / (high - low)).sum(axis=0)
    np.testing.assert_allclose(margins, 1 - published, atol=1e-5)
    # Afterwards a score depends on no other image.
    np.testing.assert_allclose(detector.score_samples(photos[:1]), margins[:1])
    single = SDPDetector("tiny", image_score="prompts+map").fit(photos[:1])
    assert np.isfinite(single.score_samples(photos)).all()


def test_class_name_of_fit_is_the_default(photos: list[np.ndarray]) -> None:
    named = SDPDetector("tiny", class_name="nut").fit()
    given = SDPDetector("tiny").fit(class_name="nut")
    for method in ("score_samples", "anomaly_maps"):
        np.testing.assert_array_equal(
            getattr(named, method)(photos[:1]), getattr(given, method)(photos[:1])
        )


def test_pickle(photos: list[np.ndarray]) -> None:
    detector = SDPDetector("tiny").fit(photos)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(
        again.anomaly_maps(photos[:1]), detector.anomaly_maps(photos[:1])
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": ()}, r"layers=\(\): expected rising numbers"),
        ({"layers": 3}, "layers=3"),
        ({"layers": (2, 2)}, "rising"),
        ({"layers": (3, 1)}, "rising"),
        ({"layers": (0, 1)}, "from 1 to"),
        ({"layers": (1, 10_000)}, "from 1 to"),
        ({"layers": (1.5,)}, "rising"),
        ({"sigma": -1}, "sigma=-1: expected a number >= 0"),
        ({"sigma": np.nan}, "sigma=nan"),
        ({"sigma": "8"}, "sigma='8'"),
        ({"image_score": "map"}, "image_score='map': expected one of"),
        ({"image_score": "prompts+map"}, "but X is None"),
        ({"temperature": 0}, "temperature=0"),
        ({"prompts": "none"}, "none"),
        ({"aggregation": "median"}, "aggregation='median'"),
        ({"contamination": 0.1}, "X is None"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    detector = SDPDetector("tiny", **params)
    with pytest.raises(ValueError, match=message):
        detector.fit()


def test_search_by_pixels(photos: list[np.ndarray], rng: np.random.Generator) -> None:
    masks = [None, *(rng.random(photo.shape[:2]) < 0.2 for photo in photos[1:6])]
    search = GridSearchCV(
        SDPDetector("tiny"),
        {"sigma": [0, 8], "layers": [None, (1, 2)]},
        scoring=get_scorer("pro"),
        cv=ZeroShotSplit(),
        error_score="raise",
    ).fit(photos[:6], masks)
    assert np.ptp(search.cv_results_["mean_test_score"]) > 0
