"""A fitted detector knows the weights and preprocessing that it was fitted with."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

import clipad_sklearn
from clipad_sklearn import (
    CalibratedThresholdDetector,
    CLIPImageEncoder,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    ReferenceDetector,
    SDPDetector,
    SDPPlusDetector,
    TiledDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._cli.main import main
from clipad_sklearn._clip.models import n_features
from clipad_sklearn._clip.source import TINY

MESSAGE = "was fitted with other weights or preprocessing"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "clip")
    return tmp_path / "clip"


def _replace_weights(folder: Path, name: str = "visual.proj") -> None:
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, path)


def _fitted(kind: str, clip: str, photos: list[np.ndarray]) -> Any:
    """Return one of all detectors that know a CLIP, fitted."""
    encoder = CLIPImageEncoder(clip)
    words = RandomWordDetector(clip, n_pairs=20, classifier=LogisticRegression())
    reference = ReferenceDetector(clip)
    of_images = {
        "winclip": WinCLIPDetector(clip, window_sizes=(3,)),
        "winclip+": WinCLIPDetector(clip, window_sizes=(3,), references=True),
        "sdp": SDPDetector(clip),
        "reference": reference,
        "thinned": ReferenceDetector(clip, location="anywhere", max_patches=50),
        "tiled": TiledDetector(SDPDetector(clip), tiles=(1, 2)),
        "tiled reference": TiledDetector(reference, tiles=(1, 2)),
        "fusion": FusionDetector([("a", SDPDetector(clip)), ("b", reference)]),
        "calibrated": CalibratedThresholdDetector(
            reference, max_false_alarm=0.3, random_state=0
        ),
        "prompt": make_pipeline(encoder, PromptDetector(clip)),
        "other clip": make_pipeline(encoder, PromptDetector("tiny")),
        "outlier": make_pipeline(encoder, OneClassSVM()),
        "scaled": make_pipeline(
            encoder, StandardScaler(), IsolationForest(n_estimators=5, random_state=0)
        ),
        "random word": make_pipeline(encoder, words),
    }
    if kind == "sdp+":
        masks = [None, np.eye(*photos[1].shape[:2], dtype=bool)]
        return SDPPlusDetector(clip, n_epochs=1).fit(photos[:2], masks)
    return of_images[kind].fit(None if kind == "prompt" else photos[4:])


NEED_NO_CLIP = {("winclip", "is_reference"), ("thinned", "partial_fit")}
KINDS = [
    "prompt", "random word", "winclip", "winclip+", "sdp", "sdp+", "reference",
    "thinned", "tiled", "tiled reference", "fusion", "calibrated", "other clip",
    "outlier", "scaled",
]  # fmt: skip


def test_every_detector_is_among_them() -> None:
    known = {
        "PromptDetector", "RandomWordDetector", "WinCLIPDetector", "SDPDetector",
        "SDPPlusDetector", "ReferenceDetector", "TiledDetector", "FusionDetector",
        "CalibratedThresholdDetector",
    }  # fmt: skip
    # It knows embeddings only, not by which CLIP they were made.
    without_clip = {"DamageDirectionDetector"}
    detectors = {name for name in clipad_sklearn.__all__ if name.endswith("Detector")}
    assert detectors == known | without_clip


# Said by those within other detectors, before these refuse.
@pytest.mark.filterwarnings("ignore:This PromptDetector")
@pytest.mark.parametrize("kind", KINDS)
def test_other_weights(kind: str, folder: Path, photos: list[np.ndarray]) -> None:
    detector = _fitted(kind, str(folder), photos)
    before = detector.score_samples(photos[:2])
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    _replace_weights(folder)
    detector = pickle.loads(pickle.dumps(detector))
    # Where nothing was learned, and no threshold was set, a warning is enough.
    notices: Any = pytest.raises(ValueError, match=MESSAGE)
    if kind == "prompt":
        notices = pytest.warns(UserWarning, match=MESSAGE)
    for fresh in (False, True):
        for method in (
            "predict", "score_samples", "anomaly_maps", "is_reference", "partial_fit",
        ):  # fmt: skip
            if not hasattr(detector, method) or (kind, method) in NEED_NO_CLIP:
                continue
            if fresh:  # as in a new process
                clear_models()
            with notices:
                getattr(detector, method)(photos[:2])
    if kind == "prompt":
        detector[-1].offset_ = 0.5
        with pytest.raises(ValueError, match=MESSAGE):
            detector.predict(photos[:2])
        detector[-1].offset_ = 0.0
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    np.testing.assert_allclose(detector.score_samples(photos[:2]), before, atol=1e-3)
    _replace_weights(folder)
    if kind != "sdp+":
        assert detector.fit(photos[4:]).score_samples(photos[:2]).shape == (2,)


def test_embeddings_from_the_cache_tell_it_too(
    folder: Path, photo_files: list[str], tmp_path: Path
) -> None:
    """Neither the fit nor the scores load any weights."""
    clip = OpenCLIP(str(folder), embedding_cache=str(tmp_path / "cache"))
    detector = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip))
    loaded = clone(detector).fit(photo_files)
    clear_models()
    kept = clone(detector).fit(photo_files)
    assert n_features(clip) is None
    assert kept[-1].clip_fingerprint_ == loaded[-1].clip_fingerprint_
    kept[-1].offset_ = 0.5
    before = kept.score_samples(photo_files)
    assert n_features(clip) is None

    _replace_weights(folder, "text_projection")
    clone(detector).fit(photo_files).score_samples(photo_files)
    clear_models()
    with pytest.raises(ValueError, match=MESSAGE):
        kept.score_samples(photo_files)
    assert n_features(clip) is None
    _replace_weights(folder, "text_projection")
    np.testing.assert_array_equal(kept.score_samples(photo_files), before)


def test_layers_that_were_loaded(
    folder: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    _fitted("sdp+", str(folder), photos).save_layers(tmp_path / "layers.safetensors")
    detector = SDPPlusDetector(str(folder)).load_layers(tmp_path / "layers.safetensors")
    _replace_weights(folder)
    with pytest.raises(ValueError, match=MESSAGE):
        detector.anomaly_maps(photos[:2])


@pytest.mark.filterwarnings("ignore:This PromptDetector")
@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("preprocess_cfg", "interpolation", "bilinear"),
        ("model_cfg", "quick_gelu", True),
        ("vision_cfg", "head_width", 32),
        ("vision_cfg", "pool_type", "avg"),
    ],
)
def test_another_model_of_the_same_weights(
    place: str, name: str, value: Any, folder: Path, photos: list[np.ndarray]
) -> None:
    detectors = [_fitted(k, str(folder), photos) for k in ("reference", "outlier")]
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    inner = config if place in config else config["model_cfg"]
    assert inner[place].get(name) != value
    inner[place][name] = value
    path.write_text(json.dumps(config))
    for detector in detectors:
        with pytest.raises(ValueError, match=MESSAGE):
            detector.predict(photos[:2])


@pytest.mark.filterwarnings("ignore:This PromptDetector")
@pytest.mark.parametrize(
    "settings", [{"image_size": 224}, {"resize": "crop"}, {"image_size": (112, 56)}]
)
def test_other_preprocessing(
    settings: dict[str, Any], photos: list[np.ndarray]
) -> None:
    detector = SDPDetector(OpenCLIP("tiny")).fit(None)
    detector.clip.set_params(batch_size=3, precision="fp32", image_size=112)
    detector.score_samples(photos[:2])  # settings that change no score
    detector.clip.set_params(**settings)
    with pytest.raises(ValueError, match=MESSAGE):
        detector.score_samples(photos[:2])


def test_the_command_says_so(
    folder: Path, photo_files: list[str], tmp_path: Path, capsys: Any
) -> None:
    saved = str(tmp_path / "detector.joblib")
    outliers = make_pipeline(CLIPImageEncoder(str(folder)), OneClassSVM())
    joblib.dump(outliers.fit(photo_files), tmp_path / "outliers.joblib")
    arguments = ["--method", "prompt", "--contamination", "0.2", "--save", saved]
    assert main(["score", *photo_files, "--clip", str(folder), *arguments]) == 0
    _replace_weights(folder, "text_projection")
    for path in (saved, str(tmp_path / "outliers.joblib")):
        assert main(["score", *photo_files, "--load", path]) == 2
        assert MESSAGE in capsys.readouterr().err
