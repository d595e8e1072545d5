"""Detectors inside Pipelines: names, weights, forgotten steps, no model loaded."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from clipad_sklearn import (
    CLIPImageEncoder,
    FusionDetector,
    PromptDetector,
    RandomWordDetector,
    clear_models,
)
from clipad_sklearn._clip.loaded_model import LoadedModel
from clipad_sklearn.model_selection import ZeroShotSplit

FAST = {"n_pairs": 100, "classifier": LogisticRegression(), "random_state": 0}


def test_nothing_loads_a_model(
    monkeypatch: pytest.MonkeyPatch, photos: list[np.ndarray]
) -> None:
    words = RandomWordDetector("tiny", **FAST)
    fusion = FusionDetector([("words", words), ("prompts", PromptDetector("tiny"))])
    fitted = make_pipeline(CLIPImageEncoder("tiny"), fusion).fit(photos)
    unfitted = clone(fitted)
    clear_models()
    loads: list[Any] = []
    original = LoadedModel.__init__

    def counting(self: LoadedModel, *args: Any, **params: Any) -> None:
        loads.append(args)
        original(self, *args, **params)

    monkeypatch.setattr(LoadedModel, "__init__", counting)
    for pipeline in (unfitted, fitted):
        clone(pipeline)
        repr(pipeline)
        pipeline._repr_html_()
        pipeline.get_params(deep=True)
        pickle.loads(pickle.dumps(pipeline))
    assert loads == []
    fitted.predict(photos)
    assert len(loads) == 1


def test_fit_predict_with_names_of_images(embeddings: np.ndarray) -> None:
    names = ["flawless bolt"] * 30 + ["damaged fabric"] * 30
    detector = PromptDetector("tiny", contamination=0.2)
    verdicts = detector.fit_predict(embeddings, class_name=names)
    assert (verdicts == -1).sum() == 12
    np.testing.assert_array_equal(
        verdicts, detector.predict(embeddings, class_name=names)
    )
    with config_context(enable_metadata_routing=True):
        last = PromptDetector("tiny", contamination=0.2)
        last.set_fit_request(class_name=True).set_predict_request(class_name=True)
        pipeline = make_pipeline(FunctionTransformer(), last)
        routed = pipeline.fit_predict(embeddings, class_name=names)
    np.testing.assert_array_equal(routed, verdicts)


@pytest.mark.parametrize("routing", [False, True])
def test_score_of_a_pipeline(routing: bool, embeddings: np.ndarray) -> None:
    y = np.repeat([1, -1], 30)
    with config_context(enable_metadata_routing=routing):
        pipeline = make_pipeline(FunctionTransformer(), PromptDetector("tiny"))
        expected = PromptDetector("tiny").fit(None).score(embeddings, y)
        assert pipeline.fit(embeddings).score(embeddings, y) == expected
        search = GridSearchCV(
            pipeline, {"promptdetector__prompts": ["clip-ac"]}, cv=ZeroShotSplit()
        ).fit(embeddings, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    "detector", [PromptDetector("tiny"), RandomWordDetector("tiny", **FAST)]
)
def test_score_with_weights(detector: Any, embeddings: np.ndarray) -> None:
    """A weight of two is the sample twice."""
    y = np.repeat([0, 1], 30)
    weights = np.arange(60) % 3
    twice = np.repeat(np.arange(60), weights)
    detector = detector.fit(None)
    assert detector.score(embeddings, y, sample_weight=weights) == pytest.approx(
        detector.score(embeddings[twice], y[twice])
    )


@pytest.mark.parametrize("routing", [False, True])
def test_names_reach_members_that_are_pipelines(
    routing: bool, embeddings: np.ndarray
) -> None:
    names = ["bolt", "nut"] * 30
    alone = FusionDetector([("a", PromptDetector("tiny"))])
    with config_context(enable_metadata_routing=routing):
        last = PromptDetector("tiny")
        if routing:
            last.set_fit_request(class_name=True)
        member = make_pipeline(FunctionTransformer(), last)
        fused = FusionDetector([("a", member)]).fit(embeddings, class_name=names)
        scores = fused.score_samples(embeddings, class_name=names)
    np.testing.assert_array_equal(
        scores,
        alone.fit(embeddings, class_name=names).score_samples(
            embeddings, class_name=names
        ),
    )
    assert not np.allclose(scores, alone.score_samples(embeddings))


def test_names_of_features_are_forgotten(embeddings: np.ndarray) -> None:
    pd = pytest.importorskip("pandas")
    width = embeddings.shape[1]
    first = pd.DataFrame(embeddings, columns=[f"a{k}" for k in range(width)])
    second = pd.DataFrame(embeddings, columns=[f"b{k}" for k in range(width)])
    for detector in (
        PromptDetector("tiny"),
        RandomWordDetector("tiny", **FAST),
        FusionDetector([("a", PromptDetector("tiny"))]),
    ):
        assert detector.fit(first).feature_names_in_[0] == "a0"
        assert not hasattr(detector.fit(None), "feature_names_in_")
        assert len(detector.score_samples(second)) == len(second)


@pytest.mark.parametrize("kind", ["paths", "arrays", "one array", "pictures"])
def test_a_forgotten_encoder_is_named(
    kind: str, photos: list[np.ndarray], photo_files: list[str]
) -> None:
    X: Any = {
        "paths": photo_files,
        "arrays": photos,
        "one array": np.zeros((3, 8, 8, 3), np.uint8),
        "pictures": [Image.fromarray(photo) for photo in photos],
    }[kind]
    for detector in (PromptDetector("tiny"), RandomWordDetector("tiny", **FAST)):
        with pytest.raises(ValueError, match=r"put CLIPImageEncoder\(clip\) before"):
            detector.fit(None).score_samples(X)
