"""Fitted detectors that were saved, by this version and by earlier ones."""

from __future__ import annotations

import json
import textwrap
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import clipad_sklearn
from clipad_sklearn import (
    CalibratedThresholdDetector,
    CLIPImageEncoder,
    DamageDirectionDetector,
    FeedForwardClassifier,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    PromptSet,
    RandomWordDetector,
    ReferenceDetector,
    SDPDetector,
    SDPPlusDetector,
    TiledDetector,
    WinCLIPDetector,
    calibrate_threshold,
)

pytestmark = pytest.mark.usefixtures("on_processor")

SAVED = sorted((Path(__file__).parents[1] / "data").glob("saved_*/*.joblib"))


def foreign(types: list[str]) -> list[str]:
    """Return what is no class of this library, as the guide on saving has it."""
    names = clipad_sklearn.__all__
    ours = {name for name in names if isinstance(getattr(clipad_sklearn, name), type)}
    return [
        name
        for name in types
        if not name.startswith("clipad_sklearn.") or name.rpartition(".")[2] not in ours
    ]


def test_functions_are_foreign() -> None:
    """A crafted file could have them called."""
    functions = [
        "clipad_sklearn._cli.output.write_text",
        "clipad_sklearn._cli.detectors._load",
        "clipad_sklearn._score_images.score_images",
        "clipad_sklearn.PromptDetector.fit",
        "clipad_sklearn_of_others.PromptDetector",
        "os.system",
    ]
    assert foreign(functions) == functions
    guide = Path(__file__).parents[2] / "docs" / "guide" / "saving.rst"
    recipe = guide.read_text().partition("   ours =")[2]
    recipe = textwrap.dedent("   ours =" + recipe.partition("   detector =")[0])
    scope: dict[str, Any] = {"types": functions, "clipad_sklearn": clipad_sklearn}
    with pytest.raises(ValueError, match="the file asks for"):
        exec(recipe, scope)


def load_skops(source: Any) -> Any:
    """Load what has no types but ours and those that skops trusts by itself."""
    read = skops.io.get_untrusted_types, skops.io.load
    if isinstance(source, bytes):
        read = skops.io.get_untrusted_types, skops.io.loads
        untrusted = read[0](data=source)
    else:
        untrusted = read[0](file=source)
    assert not foreign(untrusted)
    return read[1](source, trusted=untrusted)


def test_there_are_saved_detectors() -> None:
    assert len(SAVED) >= 7


@pytest.mark.parametrize("kind", ["joblib", "skops"])
@pytest.mark.parametrize(
    "path", SAVED, ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_saved_by_an_earlier_version(path: Path, kind: str) -> None:
    about = json.loads((path.parent / "expected.json").read_text())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kind == "joblib":
            detector = joblib.load(path)
        else:
            detector = load_skops(path.with_suffix(".skops"))
    if about["scikit-learn"] == sklearn.__version__:
        assert not caught
    # About scikit-learn's own estimators, for which it promises nothing across its
    # versions. Ours are the same in all.
    assert {warning.category for warning in caught} <= {InconsistentVersionWarning}

    expected = about["expected"][path.stem]
    if "maps" in expected:
        X = np.load(path.parent / "images.npy")
        maps = detector.anomaly_maps(X, size=(8, 8))
        np.testing.assert_allclose(maps, expected["maps"], atol=1e-4)
        assert detector.pixel_offset_ == pytest.approx(expected["pixel_offset"])
    else:
        X = np.load(path.parent / "embeddings.npy")
    if path.stem == "pipeline":
        assert detector[0].clip.batch_size == 8
        detector = detector[1]
    np.testing.assert_allclose(
        detector.score_samples(X), expected["margins"], atol=1e-4
    )
    assert detector.offset_ == pytest.approx(expected["offset"], abs=1e-4)
    assert set(detector.predict(X)) == {-1, 1}


PHOTOS = [np.full((16, 16, 3), value, np.uint8) for value in (0, 99, 200)]


def _estimators() -> dict[str, Any]:
    network = FeedForwardClassifier((8,), n_epochs=1, min_steps=5)
    words = RandomWordDetector("tiny", n_pairs=20, classifier=network, random_state=0)
    logistic = RandomWordDetector(
        OpenCLIP("tiny", batch_size=np.int64(4)),
        n_pairs=20,
        classifier=LogisticRegression(),
        center="modality",
        random_state=np.random.RandomState(0),
    )
    own = PromptSet(["fine {}"], ["bad {}"], ["a {}."])
    prompts = PromptDetector("tiny", prompts=own, contamination=0.5)
    members = [("words", words), ("prompts", prompts)]
    return {
        "encoder": CLIPImageEncoder(OpenCLIP("tiny")),
        "network": network,
        "words": words,
        "words, other classifier": logistic,
        "prompts": prompts,
        "fusion": FusionDetector(members, method="logit_mean", weights=[1.0, 2.0]),
        "standardized": FusionDetector(
            [("a", prompts), ("b", "drop")], method="standardized"
        ),
        "damage": DamageDirectionDetector(),
        "calibrated": CalibratedThresholdDetector(
            PromptDetector("tiny"), max_false_alarm=0.5, calibration_size=1.0
        ),
        "winclip": WinCLIPDetector("tiny", scorer=words, pixel_contamination=0.1),
        "references": ReferenceDetector("tiny", contamination=0.3),
        "winclip+": WinCLIPDetector("tiny", references=True),
        "sdp": SDPDetector("tiny", contamination=0.5),
        "sdp+": SDPPlusDetector("tiny", n_epochs=1, random_state=0),
        "tiled": TiledDetector(SDPDetector("tiny"), tiles=(1, 2), contamination=0.3),
        "pipeline": make_pipeline(CLIPImageEncoder("tiny"), words),
    }


@pytest.mark.filterwarnings("ignore:The direction is learned from one:UserWarning")
@pytest.mark.filterwarnings("ignore:Fewer than 4 references:UserWarning")
@pytest.mark.filterwarnings("ignore:.* are references of the detector:UserWarning")
@pytest.mark.parametrize("name", _estimators())
def test_skops_needs_to_trust_our_types_only(name: str) -> None:
    estimator = _estimators()[name]
    X: Any = PHOTOS
    y: Any = None
    on_embeddings = ["prompts", "fusion", "standardized", "damage", "network"]
    if name in (*on_embeddings, "calibrated") or name.startswith("words"):
        X = CLIPImageEncoder("tiny").fit_transform(PHOTOS)
        y = [0, 1, 1] if name in ("network", "damage") else None
    if name == "sdp+":
        y = [None, np.ones((16, 16), bool), None]
    estimator.fit(X, y)
    if hasattr(estimator, "offset_"):
        calibrate_threshold(estimator, X, max_false_alarm=0.5)
    again = load_skops(skops.io.dumps(estimator))
    assert type(again) is type(estimator)
    assert again.get_params().keys() == estimator.get_params().keys()
    method = next(
        name
        for name in ("score_samples", "decision_function", "transform")
        if hasattr(estimator, name)
    )
    np.testing.assert_array_equal(
        getattr(again, method)(X), getattr(estimator, method)(X)
    )
    if hasattr(estimator, "p_values"):
        np.testing.assert_array_equal(again.p_values(X), estimator.p_values(X))
        assert set(again.p_values(X)) <= {0.5, 0.75, 1}
    for attribute in ("offset_", "pixel_offset_"):
        if hasattr(estimator, attribute):
            assert getattr(again, attribute) == getattr(estimator, attribute)
