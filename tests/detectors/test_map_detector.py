"""What the three detectors with anomaly maps share, and the vision towers they need."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    ImageReadError,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    SDPDetector,
    SDPPlusDetector,
    WinCLIPDetector,
    calibrate_threshold,
    metrics,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.vision_tower import VisionTower
from clipad_sklearn._detectors.maps import interpolation, upsampled
from clipad_sklearn._detectors.winclip import window_patches
from clipad_sklearn.metrics import get_scorer

SMALL_TEXT = {"context_length": 77, "width": 32, "heads": 2, "layers": 1}
SMALL_VISION = {
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "layers": 3,
    "head_width": 16,
}


@pytest.fixture
def small_clip(tmp_path: Path) -> Callable[..., OpenCLIP]:
    """Make a CLIP with random weights and the given settings of its vision tower."""

    def make(**vision: Any) -> OpenCLIP:
        folder = tmp_path / f"clip{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        config = {
            "model_cfg": {
                "embed_dim": 24,
                "vision_cfg": {**SMALL_VISION, **vision},
                "text_cfg": SMALL_TEXT,
            },
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return OpenCLIP(str(folder), "random")

    return make


def fitted(kind: str, clip: Any = "tiny", **params: Any) -> Any:
    if kind == "winclip":
        scorer = PromptDetector(clip, temperature=0.3)
        params = {"window_sizes": (3,)} | params
        return WinCLIPDetector(clip, scorer=scorer, **params).fit()
    if kind == "sdp":
        return SDPDetector(clip, **params).fit()
    photos = [np.full((16, 16, 3), value, np.uint8) for value in (0, 200)]
    masks = [None, np.eye(16, dtype=bool)]
    detector = SDPPlusDetector(clip, n_epochs=1, random_state=0, **params)
    return detector.fit(photos, masks)


every_kind = pytest.mark.parametrize("kind", ["winclip", "sdp", "sdp+"])


# -- maps ------------------------------------------------------------------------


@every_kind
class TestMaps:
    def test_sizes(self, kind: str, photos: list[np.ndarray]) -> None:
        detector = fitted(kind)
        maps = detector.anomaly_maps(photos)
        assert isinstance(maps, list)
        assert [m.shape for m in maps] == [photo.shape[:2] for photo in photos]
        of_model = detector.anomaly_maps(photos, size="model")
        side = load(OpenCLIP("tiny")).preprocess_cfg["size"]
        side = (side, side) if isinstance(side, int) else tuple(side)
        assert of_model.shape == (len(photos), *side)
        assert detector.anomaly_maps(photos, size=(7, 30)).shape == (12, 7, 30)
        for each in (*maps, of_model):
            assert each.dtype == np.float32
            assert np.isfinite(each).all()
            assert each.min() >= 0
            assert each.max() <= 1

    def test_streaming_and_batches_change_nothing(
        self, kind: str, photos: list[np.ndarray]
    ) -> None:
        expected = fitted(kind).anomaly_maps(photos)
        for batch_size in (1, 5):
            clip = OpenCLIP("tiny", batch_size=batch_size)
            detector = fitted(kind, clip=clip)
            stream = detector.iter_anomaly_maps(photos)
            assert iter(stream) is stream
            for got, wanted in zip(stream, expected, strict=True):
                np.testing.assert_allclose(got, wanted, atol=1e-5)

    def test_masks_are_maps_above_the_threshold(
        self, kind: str, photos: list[np.ndarray]
    ) -> None:
        detector = fitted(kind)
        assert detector.pixel_offset_ == 0.5
        maps = detector.anomaly_maps(photos)
        detector.pixel_offset_ = float(np.median(maps[0]))
        for mask, anomaly_map in zip(detector.predict_masks(photos), maps, strict=True):
            assert mask.dtype == bool
            np.testing.assert_array_equal(mask, anomaly_map > detector.pixel_offset_)

    def test_class_names(self, kind: str, photos: list[np.ndarray]) -> None:
        detector = fitted(kind)
        photos = photos[:3]
        names = ["nut", "paper", "nut"]
        maps = detector.anomaly_maps(photos, size="model", class_name=names)
        nuts = detector.anomaly_maps(photos, size="model", class_name="nut")
        paper = detector.anomaly_maps(photos, size="model", class_name="paper")
        np.testing.assert_allclose(maps[[0, 2]], nuts[[0, 2]], atol=1e-6)
        np.testing.assert_allclose(maps[1], paper[1], atol=1e-6)
        assert not np.allclose(nuts[1], paper[1], atol=1e-6)
        clip = OpenCLIP("tiny", batch_size=1)
        one_by_one = fitted(kind, clip=clip).anomaly_maps(
            photos, size="model", class_name=names
        )
        np.testing.assert_allclose(one_by_one, maps, atol=1e-5)
        scores = detector.score_samples(photos, class_name=names)
        assert scores[1] == detector.score_samples(photos, class_name="paper")[1]

    def test_threads(self, kind: str, photos: list[np.ndarray]) -> None:
        detector = fitted(kind, clip=OpenCLIP("tiny", batch_size=2))
        expected = detector.anomaly_maps(photos, size="model")
        with ThreadPoolExecutor(3) as pool:
            results = list(
                pool.map(
                    lambda _: detector.anomaly_maps(photos, size="model"), range(3)
                )
            )
        for maps in results:
            np.testing.assert_allclose(maps, expected, atol=1e-5)

    def test_the_model_is_left_alone(self, kind: str, photos: list[np.ndarray]) -> None:
        visual = load(OpenCLIP("tiny")).model.visual
        before = {name: value.clone() for name, value in visual.state_dict().items()}
        fitted(kind).anomaly_maps(photos[:2])
        for module in visual.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        for name, value in visual.state_dict().items():
            assert torch.equal(value, before[name])
        assert not torch.is_inference_mode_enabled()

    def test_unreadable_images_are_all_named(
        self, kind: str, photos: list[np.ndarray]
    ) -> None:
        images = [photos[0], "missing.png", photos[1], np.zeros((0, 4, 3), np.uint8)]
        detector = fitted(kind, clip=OpenCLIP("tiny", batch_size=1))
        with pytest.raises(ImageReadError) as error:
            detector.anomaly_maps(images)
        assert [failure[0] for failure in error.value.failures] == [1, 3]
        stream = detector.iter_anomaly_maps(images)
        assert next(stream).shape == photos[0].shape[:2]
        with pytest.raises(ImageReadError):
            next(stream)

    def test_numeric_thresholds(self, kind: str, photos: list[np.ndarray]) -> None:
        detector = fitted(kind)
        detector.set_params(contamination=0.25, pixel_contamination=0.1)
        warm = {"warm_start": True} if kind == "sdp+" else {}
        detector.set_params(**warm).fit(photos)
        assert (detector.predict(photos) == -1).sum() == 3
        share = np.mean(detector.predict_masks(photos, size="model"))
        assert 0.095 < share <= 0.1

    def test_constant_images_give_no_nan(
        self, kind: str, photos: list[np.ndarray]
    ) -> None:
        same = [np.full((16, 16, 3), 128, np.uint8)] * 2
        detector = fitted(kind).set_params(pixel_contamination=0.01)
        warm = {"warm_start": True} if kind == "sdp+" else {}
        detector.set_params(**warm).fit(same)
        assert np.isfinite(detector.pixel_offset_)
        assert np.mean(detector.predict_masks(same, size="model")) <= 0.01


@every_kind
@pytest.mark.parametrize(
    ("X", "params", "error", "message"),
    [
        ([], {}, ValueError, "minimum of 1"),
        ("a.png", {}, ValueError, r"Wrap it in a list"),
        (None, {}, ValueError, "X=None is accepted by `fit` only"),
        (3, {"size": "screen"}, ValueError, "size='screen': expected 'image', 'model'"),
        (3, {"size": (0, 4)}, ValueError, r"size=\(0, 4\)"),
        (3, {"size": 64}, ValueError, "size=64"),
        (3, {"size": (10**6, 10**7)}, ValueError, "expected at most 1,073,741,824 pix"),
        (3, {"size": (True, 4)}, ValueError, "size"),
        (3, {"class_name": ["nut"]}, ValueError, "given for 1 images, but X has 3"),
        (3, {"class_name": ["a", "b", 3]}, TypeError, "one string per image, found 3"),
    ],
)
def test_wrong_input_of_maps(
    kind: str, X: Any, params: Any, error: type, message: str, photos: list[np.ndarray]
) -> None:
    detector = fitted(kind)
    X = photos[:X] if isinstance(X, int) else X
    with pytest.raises(error, match=message):
        detector.iter_anomaly_maps(X, **params)  # before the first map


@every_kind
@pytest.mark.parametrize("threshold", [np.nan, True, "0.5", None])
def test_masks_need_a_threshold(
    kind: str, threshold: Any, photos: list[np.ndarray]
) -> None:
    detector = fitted(kind)
    detector.pixel_offset_ = threshold
    with pytest.raises(ValueError, match=f"pixel_offset_={threshold!r}: expected"):
        detector.predict_masks(photos[:1])


@every_kind
def test_crop_has_no_map_of_the_image(kind: str, photos: list[np.ndarray]) -> None:
    detector = fitted(kind)
    detector.set_params(clip=OpenCLIP("tiny", resize="crop"))
    del detector.clip_fingerprint_  # as if it had been fitted with this one
    with pytest.raises(ValueError, match="resize='crop'"):
        detector.anomaly_maps(photos)
    assert len(detector.anomaly_maps(photos[:2], size="model")) == 2


@pytest.mark.parametrize("value", [0, 0.6, -0.1, "many", True, None, np.nan])
def test_wrong_pixel_contamination(value: Any, photos: list[np.ndarray]) -> None:
    detector = SDPDetector("tiny", pixel_contamination=value)
    with pytest.raises(ValueError, match="pixel_contamination"):
        detector.fit(photos)


def test_pixel_contamination_needs_images() -> None:
    with pytest.raises(ValueError, match="but X is None"):
        SDPDetector("tiny", pixel_contamination=0.1).fit()


def test_calibrate_threshold_on_images(photos: list[np.ndarray]) -> None:
    detector = calibrate_threshold(fitted("sdp"), photos, max_false_alarm=0.25)
    assert (detector.predict(photos) == -1).sum() <= 3


def test_fitted_attributes_hold_no_torch(photos: list[np.ndarray]) -> None:
    for kind in ("winclip", "sdp", "sdp+"):
        for name, value in vars(fitted(kind)).items():
            if name.endswith("_"):
                assert not type(value).__module__.startswith("torch"), name


# -- enlarging ---------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("n_in", "n_out"), [(15, 240), (7, 31), (1, 5), (8, 3)])
def test_interpolation_is_that_of_torch(
    n_in: int, n_out: int, align_corners: bool, rng: np.random.Generator
) -> None:
    maps = rng.standard_normal((2, n_in, n_in + 1))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[:, None],
        size=(n_out, n_out + 2),
        mode="bilinear",
        align_corners=align_corners,
    )[:, 0].numpy()
    got = upsampled(maps, (n_out, n_out + 2), align_corners=align_corners)
    np.testing.assert_allclose(got, expected, atol=1e-12)
    weights = interpolation(n_in, n_out, align_corners)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    for sigma in (0.7, 4, 50):  # the last reaches beyond all borders
        smooth = ndimage.gaussian_filter(got, (0, sigma, sigma))
        at_once = upsampled(
            maps, (n_out, n_out + 2), align_corners=align_corners, sigma=sigma
        )
        np.testing.assert_allclose(at_once, smooth, atol=1e-12)


# -- vision towers -------------------------------------------------------------------

ATTENTION_POOLING = {"attentional_pool": True, "attn_pooler_queries": 6}
TOWERS = {
    "class token": {},
    "average": {"pool_type": "avg"},
    "average, norm after": {
        "pool_type": "avg",
        "final_ln_after_pool": True,
        "no_ln_pre": True,
    },
    "class token, norm after": {"final_ln_after_pool": True},
    "layer scale": {"ls_init_value": 0.1},
    "one block": {"layers": 1},
    "wide grid": {"image_size": [24, 40]},
    "attention pooling": {**ATTENTION_POOLING, "attn_pooler_heads": 2},
    "custom blocks": {"qk_norm": True, "scale_fc": True},
}


@pytest.mark.parametrize("vision", TOWERS.values(), ids=TOWERS.keys())
def test_the_whole_grid_as_one_window_is_the_image(
    vision: dict[str, Any], small_clip: Callable[..., OpenCLIP]
) -> None:
    model = load(small_clip(**vision))
    tower = VisionTower(model)
    pixels = torch.randn((3, 3, *tower.input_size))
    whole = window_patches(tower.grid, tower.grid)
    small = window_patches(tower.grid, (2, 2))
    expected = model.encode_pixels(pixels)
    together = tower.encode_windows(pixels, [small, whole], 10_000)
    np.testing.assert_allclose(together[:, -1], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=2), 1, atol=1e-5)
    # However the windows are cut into calls.
    for max_tokens in (1, 17, 60):
        parts = tower.encode_windows(pixels, [small, whole], max_tokens)
        np.testing.assert_allclose(parts, together, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in TOWERS if "attention" not in n])
def test_sdp_on_every_tower(
    name: str, small_clip: Callable[..., OpenCLIP], photos: list[np.ndarray]
) -> None:
    clip = small_clip(**TOWERS[name])
    detector = SDPDetector(clip, prompts="clip-ac")
    if name == "custom blocks":
        with pytest.raises(ValueError, match=r"Models that work: .*ViT-B-16"):
            detector.fit()
        return
    maps = detector.fit().anomaly_maps(photos[:2], size="model")
    assert maps.shape[1:] == VisionTower(load(clip)).input_size


def test_sdp_refuses_attention_pooling(small_clip: Callable[..., OpenCLIP]) -> None:
    clip = small_clip(**TOWERS["attention pooling"])
    with pytest.raises(ValueError, match="pools by attention") as error:
        SDPDetector(clip).fit()
    assert "ViT-B-16-plus-240" in str(error.value)
    assert "coca_ViT-B-32" not in str(error.value)
    # WinCLIP needs no single patch token.
    WinCLIPDetector(clip, scorer=PromptDetector(clip, prompts="clip-ac")).fit()


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, "ModifiedResNet"),
        ({"pool_type": "none"}, "pool_type='none'"),
        (
            {"attentional_pool": "parallel", "attn_pooler_heads": 2},
            "two attention poolers",
        ),
    ],
)
@pytest.mark.usefixtures("on_processor")
def test_towers_that_do_not_fit(
    vision: dict[str, Any], reason: str, small_clip: Callable[..., OpenCLIP]
) -> None:
    clip = small_clip(**vision)
    for detector in (WinCLIPDetector(clip), SDPDetector(clip), SDPPlusDetector(clip)):
        with pytest.raises(ValueError, match=reason) as error:
            detector.fit()
        assert "Models that work: " in str(error.value)
        assert "ViT-B-16-plus-240" in str(error.value)
        assert "RN50" not in str(error.value)


def test_photo_files_and_arrays_agree(
    photos: list[np.ndarray], photo_files: list[str]
) -> None:
    detector = fitted("sdp")
    expected = detector.anomaly_maps(photos)
    for images in (photo_files, [Image.fromarray(photo) for photo in photos]):
        for got, wanted in zip(detector.anomaly_maps(images), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_random_words_make_maps_without_naming_the_object(
    photos: list[np.ndarray],
) -> None:
    words = RandomWordDetector(
        "tiny", n_pairs=100, classifier=LogisticRegression(), random_state=0
    )
    detector = WinCLIPDetector("tiny", scorer=words)
    maps = clone(detector).fit().anomaly_maps(photos[:2])
    again = clone(detector).fit().anomaly_maps(photos[:2], class_name="nut")
    assert all(m.std() > 0 for m in maps)
    # The scorer takes no class name.
    np.testing.assert_array_equal(maps[0], again[0])


# -- scorers of pixels -----------------------------------------------------------------


@pytest.mark.parametrize("metric", ["pixel_auroc", "pixel_aupr", "pixel_f1_max", "pro"])
def test_scorers_of_pixels(
    metric: str, photos: list[np.ndarray], rng: np.random.Generator
) -> None:
    detector = fitted("sdp")
    masks = [None, *(rng.random(photo.shape[:2]) < 0.2 for photo in photos[1:])]
    scorer = pickle.loads(pickle.dumps(get_scorer(metric)))
    assert scorer == get_scorer(metric)
    assert repr(scorer) == f"get_scorer({metric!r})"
    of_metrics = getattr(metrics, metric.removeprefix("pixel_"))
    expected = of_metrics(masks, detector.anomaly_maps(photos))
    assert scorer(detector, photos, masks) == expected
    with pytest.raises(ValueError, match="needs masks"):
        scorer(detector, photos, None)
    with pytest.raises(TypeError, match="PromptDetector has no anomaly_maps"):
        scorer(PromptDetector("tiny"), photos, masks)


@pytest.mark.parametrize("kind", ["winclip", "sdp", "sdp+"])
def test_maps_before_an_unreadable_image(kind: str, photos: list[np.ndarray]) -> None:
    detector = fitted(kind, OpenCLIP("tiny", batch_size=2))
    maps = detector.iter_anomaly_maps([*photos[:3], "missing.png", *photos[3:]])
    for photo in photos[:3]:
        assert next(maps).shape == photo.shape[:2]
    with pytest.raises(ImageReadError, match=r"3: missing.png: no such file"):
        next(maps)


def test_generators_of_images(photos: list[np.ndarray]) -> None:
    """Also where images are gone through more than once."""
    for detector in (
        WinCLIPDetector(
            "tiny", window_sizes=(3,), contamination=0.25, pixel_contamination=0.1
        ),
        SDPDetector("tiny", image_score="prompts+map", contamination=0.25),
    ):
        scores = detector.fit(iter(photos)).score_samples(iter(photos))
        np.testing.assert_array_equal(
            scores, detector.fit(photos).score_samples(photos)
        )
        verdicts = detector.fit_predict(iter(photos))
        np.testing.assert_array_equal(verdicts, detector.predict(photos))


def test_y_may_be_files_of_masks(photos: list[np.ndarray]) -> None:
    """As searches by pixels pass them on; `fit` ignores them."""
    SDPDetector("tiny").fit(photos[:2], ["mask.png", None])


@pytest.mark.parametrize("kind", [SDPDetector, WinCLIPDetector])
def test_an_encoder_too_many_is_named(kind: Any, photos: list[np.ndarray]) -> None:
    pipeline = make_pipeline(CLIPImageEncoder("tiny"), kind("tiny"))
    with pytest.raises(ValueError, match=r"takes images.*leave the encoder out"):
        pipeline.fit(None).score_samples(photos)
