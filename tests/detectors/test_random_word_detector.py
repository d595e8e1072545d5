"""`RandomWordDetector`: words, centres, classifiers, what is kept."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    metrics,
    random_word_prompts,
)

# The network of the default, trained for a few steps.
SHORT = {
    "n_pairs": 50,
    "classifier": FeedForwardClassifier(n_epochs=1, min_steps=5),
    "random_state": 0,
}
FAST = {"n_pairs": 100, "classifier": LogisticRegression(), "random_state": 0}


class TestRandomWordDetector:
    def test_learns_the_prompts_and_scores_images(self, embeddings: np.ndarray) -> None:
        """The plain way, written out: encode pairs, fit, take the margin."""
        detector = RandomWordDetector("tiny", **FAST).fit(embeddings)
        normal, anomalous = random_word_prompts(
            100, random_state=np.random.RandomState(0)
        )
        texts = OpenCLIP("tiny").encode_text(normal + anomalous)
        classifier = LogisticRegression().fit(texts, [1] * 100 + [-1] * 100)
        np.testing.assert_allclose(
            detector.score_samples(embeddings),
            classifier.decision_function(embeddings),
            atol=1e-4,
        )

    def test_reproducible(self, embeddings: np.ndarray) -> None:
        network = FeedForwardClassifier((32, 32), min_steps=40)
        detector = RandomWordDetector(
            "tiny", n_pairs=200, classifier=network, random_state=3
        )
        first = detector.fit().score_samples(embeddings)
        again = clone(detector).fit(embeddings).score_samples(embeddings)
        np.testing.assert_array_equal(first, again)
        other = clone(detector).set_params(random_state=4).fit()
        assert np.abs(other.score_samples(embeddings) - first).max() > 1e-3

    @pytest.mark.parametrize(
        "classifier",
        [
            FeedForwardClassifier((8,), min_steps=200),
            RidgeClassifier(),
            SVC(),
            RandomForestClassifier(5),
            make_pipeline(LogisticRegression()),
        ],
        ids=lambda c: type(c).__name__,
    )
    def test_any_classifier(self, classifier: Any, embeddings: np.ndarray) -> None:
        detector = RandomWordDetector("tiny", n_pairs=50, classifier=classifier)
        detector.set_params(random_state=0)
        margins = detector.fit(embeddings).score_samples(embeddings)
        assert margins.shape == (60,)
        assert np.isfinite(margins).all()
        normal, anomalous = random_word_prompts(50, random_state=5)
        texts = OpenCLIP("tiny").encode_text(normal + anomalous)
        margins = detector.score_samples(texts)
        labels = [1] * 50 + [-1] * 50
        assert metrics.auroc(labels, -margins) > 0.9, "higher must mean more normal"

    def test_classifier_without_scores(self) -> None:
        class Silent(NearestCentroid):
            decision_function = property()
            predict_proba = property()

        with pytest.raises(ValueError, match="neither decision_function nor"):
            RandomWordDetector("tiny", classifier=Silent()).fit()

    def test_center(self, embeddings: np.ndarray) -> None:
        by_center = {
            center: RandomWordDetector("tiny", center=center, **FAST).fit(embeddings)
            for center in (None, "text", "modality")
        }
        assert not by_center[None].text_mean_.any()
        text = by_center["text"]
        np.testing.assert_array_equal(text.text_mean_, text.image_mean_)
        modality = by_center["modality"]
        np.testing.assert_allclose(modality.image_mean_, embeddings.mean(0), atol=1e-6)
        shifted = by_center["modality"].score_samples(embeddings)
        assert not np.allclose(shifted, by_center[None].score_samples(embeddings))
        with pytest.raises(ValueError, match="X is None"):
            RandomWordDetector("tiny", center="modality", **FAST).fit()
        with pytest.raises(ValueError, match="center='image'"):
            RandomWordDetector("tiny", center="image", **FAST).fit()

    def test_class_name(self, embeddings: np.ndarray) -> None:
        plain = RandomWordDetector("tiny", **FAST).fit()
        named = RandomWordDetector("tiny", class_name="hazelnut", **FAST).fit()
        assert not np.allclose(
            plain.score_samples(embeddings), named.score_samples(embeddings)
        )

    def test_width_of_another_clip(self, rng: np.random.Generator) -> None:
        with pytest.raises(ValueError, match=r"X has 512 features.*of \d+ features"):
            RandomWordDetector("tiny", **FAST).fit(rng.standard_normal((5, 512)))
        fitted = RandomWordDetector("tiny", **FAST).fit()
        with pytest.raises(ValueError, match="X has 512 features, but"):
            fitted.predict(rng.standard_normal((5, 512)))

    def test_pickle_is_small_weight_free_and_works_elsewhere(
        self, embeddings: np.ndarray, tmp_path: Path
    ) -> None:
        # The size is that of the network, however many prompts it learned from.
        detector = RandomWordDetector("tiny", **SHORT)
        content = pickle.dumps(detector.fit(embeddings))
        assert len(content) < 8_000_000
        (tmp_path / "detector.pkl").write_bytes(content)
        np.save(tmp_path / "X.npy", embeddings)
        code = (
            "import pickle, sys, numpy as np\n"
            "detector = pickle.load(open('detector.pkl', 'rb'))\n"
            "np.save('scores.npy', detector.score_samples(np.load('X.npy')))\n"
            "assert 'torch' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        scores = np.load(tmp_path / "scores.npy")
        np.testing.assert_array_equal(scores, detector.score_samples(embeddings))

    def test_fitted_state_holds_nothing_of_torch(self) -> None:
        found: list[str] = []

        def walk(value: Any, name: str, seen: set[int]) -> None:
            if id(value) in seen:
                return
            seen.add(id(value))
            if isinstance(value, (torch.Tensor, torch.nn.Module, torch.Generator)):
                found.append(name)
            if isinstance(value, dict):
                items = list(value.items())
            elif isinstance(value, (list, tuple)):
                items = list(enumerate(value))
            else:
                items = list(getattr(value, "__dict__", {}).items())
            for key, item in items:
                walk(item, f"{name}.{key}", seen)

        words = RandomWordDetector("tiny", **SHORT)
        detector = make_pipeline(
            CLIPImageEncoder("tiny"),
            FusionDetector([("words", words), ("prompts", PromptDetector("tiny"))]),
        ).fit(None)
        walk(detector, "detector", set())
        assert found == []
