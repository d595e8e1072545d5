"""`PromptDetector`: formulas, aggregations, class names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import config_context
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    PromptDetector,
    PromptSet,
)
from clipad_sklearn._detectors.aggregation import METHODS
from clipad_sklearn._prompts import PRESETS


class TestPromptDetector:
    def test_formula(self, embeddings: np.ndarray) -> None:
        prompts = PromptSet(["good {}", "{} as new"], ["bad {}"], ["a {}.", "the {}!"])
        detector = PromptDetector("tiny", prompts=prompts, class_name="nut")
        margins = detector.fit().score_samples(3 * embeddings)
        clip = OpenCLIP("tiny")
        normal, anomalous = (
            clip.encode_text(texts).astype(np.float64).mean(axis=0)
            for texts in (
                ["a good nut.", "the good nut!", "a nut as new.", "the nut as new!"],
                ["a bad nut.", "the bad nut!"],
            )
        )
        cosines = embeddings @ np.column_stack(
            [anomalous / np.linalg.norm(anomalous), normal / np.linalg.norm(normal)]
        )
        logits = cosines / 0.01
        softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(margins, logits[:, 1] - logits[:, 0], atol=1e-3)
        np.testing.assert_allclose(
            detector.predict_proba(embeddings), softmax, atol=1e-4
        )

    def test_temperature_changes_no_ranking(self, embeddings: np.ndarray) -> None:
        hot, cold = (
            PromptDetector("tiny", temperature=t).fit().score_samples(embeddings)
            for t in (0.07, 0.01)
        )
        np.testing.assert_allclose(hot * 7, cold, rtol=1e-6)

    @pytest.mark.parametrize("prompts", PRESETS)
    @pytest.mark.parametrize("aggregation", METHODS)
    def test_presets_and_aggregations(
        self, prompts: str, aggregation: str, embeddings: np.ndarray
    ) -> None:
        detector = PromptDetector("tiny", prompts=prompts, aggregation=aggregation)
        detector.fit(embeddings)
        assert detector.prototypes_.shape == (1, 2, embeddings.shape[1])
        np.testing.assert_allclose(
            np.linalg.norm(detector.prototypes_, axis=2), 1, rtol=1e-6
        )

    def test_aggregation_params(self) -> None:
        kwargs = {"aggregation": "dbscan", "prompts": "clip-ad"}
        wide = PromptDetector("tiny", aggregation_params={"eps": 1.9}, **kwargs).fit()
        mean = PromptDetector("tiny", prompts="clip-ad").fit()
        np.testing.assert_allclose(wide.prototypes_, mean.prototypes_, atol=1e-6)
        with pytest.raises(ValueError, match="bandwidth"):
            PromptDetector("tiny", aggregation_params={"bandwidth": 1}, **kwargs).fit()

    def test_class_name_per_image(self, embeddings: np.ndarray) -> None:
        X = embeddings[:6]
        names = ["bolt", "nut", "bolt", "cable tie", "nut", "bolt"]
        each = np.array(
            [
                PromptDetector("tiny", class_name=name).fit().score_samples(X[[i]])[0]
                for i, name in enumerate(names)
            ]
        )
        known = PromptDetector("tiny").fit(X, class_name=names)
        unknown = PromptDetector("tiny").fit(X)
        for detector in (known, unknown):
            for given in (names, np.array(names)):
                found = detector.score_samples(X, class_name=given)
                np.testing.assert_allclose(found, each, atol=1e-4)
        assert unknown.class_names_ == ["object"]
        one = unknown.score_samples(X, class_name="nut")
        expected = PromptDetector("tiny").fit(X, class_name="nut").score_samples(X)
        np.testing.assert_allclose(one, expected, atol=1e-6)

    def test_class_name_through_a_pipeline(self, photos: list[np.ndarray]) -> None:
        names = ["bolt", "nut"] * 6
        encoder = CLIPImageEncoder("tiny")
        direct = PromptDetector("tiny").fit()
        X = encoder.transform(photos)
        with config_context(enable_metadata_routing=True):
            detector = PromptDetector("tiny").set_fit_request(class_name=True)
            for method in ("predict", "decision_function", "predict_proba"):
                getattr(detector, f"set_{method}_request")(class_name=True)
            pipeline = make_pipeline(encoder, detector).fit(photos, class_name=names)
            for method in ("predict", "decision_function", "predict_proba"):
                np.testing.assert_allclose(
                    getattr(pipeline, method)(photos, class_name=names),
                    getattr(direct, method)(X, class_name=names),
                    atol=1e-6,
                )

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"prompts": "winclap"}, "winclip"),
            ({"aggregation": "median"}, "dbscan"),
            ({"temperature": 0}, "temperature=0"),
            ({"class_name": " "}, "class_name is blank"),
            ({"contamination": 0.6}, "contamination=0.6"),
            ({"contamination": True}, "contamination=True"),
            ({"contamination": "some"}, "contamination='some'"),
        ],
    )
    def test_bad_parameters(
        self, params: dict[str, Any], message: str, embeddings: np.ndarray
    ) -> None:
        with pytest.raises(ValueError, match=message):
            PromptDetector("tiny", **params).fit(embeddings)

    @pytest.mark.parametrize(
        ("class_name", "kind", "message"),
        [
            (["nut"], ValueError, "given for 1 images, but X has 60"),
            ([1] * 60, TypeError, "found 1"),
        ],
    )
    def test_bad_class_names(
        self,
        class_name: Any,
        kind: type[Exception],
        message: str,
        embeddings: np.ndarray,
    ) -> None:
        with pytest.raises(kind, match=message):
            PromptDetector("tiny").fit().predict(embeddings, class_name=class_name)
