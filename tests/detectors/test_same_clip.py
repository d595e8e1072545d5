"""A fitted detector knows the weights and preprocessing that it was fitted with."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    SDPDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._cli.main import main
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


def _detector(kind: str, folder: Path) -> Any:
    clip = str(folder)
    return {
        "prompt": make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)),
        "random word": make_pipeline(
            CLIPImageEncoder(clip),
            RandomWordDetector(clip, n_pairs=20, random_state=0),
        ),
        "winclip": WinCLIPDetector(clip),
        "sdp": SDPDetector(clip),
    }[kind]


@pytest.mark.parametrize("kind", ["prompt", "random word", "winclip", "sdp"])
@pytest.mark.parametrize("fresh", [False, True])
def test_other_weights(
    kind: str, fresh: bool, folder: Path, photos: list[np.ndarray]
) -> None:
    detector = _detector(kind, folder).fit(None)
    before = detector.score_samples(photos[:2])
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    _replace_weights(folder)
    detector = pickle.loads(pickle.dumps(detector))
    if fresh:  # as in a new process
        clear_models()
    for method in ("predict", "score_samples", "anomaly_maps"):
        if hasattr(detector, method):
            with pytest.raises(ValueError, match=MESSAGE):
                getattr(detector, method)(photos[:2])
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    np.testing.assert_allclose(detector.score_samples(photos[:2]), before, atol=1e-6)
    _replace_weights(folder)
    assert detector.fit(None).score_samples(photos[:2]).shape == (2,)


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
    arguments = ["--method", "prompt", "--contamination", "0.2", "--save", saved]
    assert main(["score", *photo_files, "--clip", str(folder), *arguments]) == 0
    _replace_weights(folder, "text_projection")
    assert main(["score", *photo_files, "--load", saved]) == 2
    assert MESSAGE in capsys.readouterr().err
