"""The detectors on embeddings: formulas, thresholds, searches, and what they keep."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit
from sklearn import config_context
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVC

from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    PromptSet,
    RandomWordDetector,
    calibrate_threshold,
    clear_models,
    metrics,
    random_word_prompts,
)
from clipad_sklearn._clip.embedding_cache import open_cache
from clipad_sklearn._clip.loaded_model import LoadedModel
from clipad_sklearn._clip.models import load
from clipad_sklearn._detectors.aggregation import METHODS
from clipad_sklearn._prompts import PRESETS
from clipad_sklearn.model_selection import ZeroShotSplit

FAST = {"n_pairs": 100, "classifier": LogisticRegression(), "random_state": 0}


@pytest.fixture
def embeddings(rng: np.random.Generator) -> np.ndarray:
    width = load(OpenCLIP("tiny")).embedding_width
    X = rng.standard_normal((60, width)).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


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
        detector = RandomWordDetector("tiny", n_pairs=200, random_state=3)
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
        detector = RandomWordDetector("tiny", random_state=0).fit(embeddings)
        content = pickle.dumps(detector)
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

    def test_default_pickle_at_640_features(self, rng: np.random.Generator) -> None:
        """The default CLIP's width, without its weights."""

        class Wide(RandomWordDetector):
            def _encode_prompts(self, prompts: Any, n_features: Any) -> np.ndarray:
                return rng.standard_normal((len(prompts), 640)).astype(np.float32)

        detector = Wide("tiny", n_pairs=200, random_state=0).fit()
        assert len(pickle.dumps(detector.classifier_)) < 8_000_000

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

        words = RandomWordDetector("tiny", n_pairs=50, random_state=0)
        detector = make_pipeline(
            CLIPImageEncoder("tiny"),
            FusionDetector([("words", words), ("prompts", PromptDetector("tiny"))]),
        ).fit(None)
        walk(detector, "detector", set())
        assert found == []


class TestThreshold:
    def _detectors(self, **params: Any) -> list[Any]:
        words, prompts = RandomWordDetector("tiny", **FAST), PromptDetector("tiny")
        members = [("words", clone(words)), ("prompts", clone(prompts))]
        detectors = [words, prompts, FusionDetector(members)]
        return [detector.set_params(**params) for detector in detectors]

    @pytest.mark.parametrize("contamination", [0.05, 0.1, 0.29, 0.5])
    def test_contamination(self, contamination: float, embeddings: np.ndarray) -> None:
        for detector in self._detectors(contamination=contamination):
            verdicts = detector.fit(embeddings).predict(embeddings)
            assert (verdicts == -1).sum() == int(contamination * 60)
            scores = detector.score_samples(embeddings)
            assert detector.offset_ in scores, "equal to the offset is normal"

    def test_contamination_needs_images(self) -> None:
        for detector in self._detectors(contamination=0.1):
            with pytest.raises(ValueError, match="but X is None"):
                detector.fit(None)

    def test_contract(self, embeddings: np.ndarray) -> None:
        for detector in self._detectors():
            detector.fit(embeddings)
            assert detector.offset_ == 0
            scores = detector.score_samples(embeddings)
            detector.offset_ = float(np.median(scores))
            decision = detector.decision_function(embeddings)
            np.testing.assert_array_equal(decision, scores - detector.offset_)
            verdicts = detector.predict(embeddings)
            np.testing.assert_array_equal(verdicts, np.where(decision >= 0, 1, -1))
            # The probability belongs to the margin, not to the verdict.
            probabilities = detector.predict_proba(embeddings)
            np.testing.assert_allclose(probabilities[:, 0], expit(-scores))
            assert detector.classes_.tolist() == [-1, 1]

    def test_one_sided_verdicts_warn(self, embeddings: np.ndarray) -> None:
        detector = PromptDetector("tiny").fit()
        scores = detector.score_samples(embeddings)
        same = embeddings[scores > 0][:1].repeat(20, axis=0)
        with pytest.warns(UserWarning, match="All 20 images were classified as normal"):
            detector.predict(same)
        detector.predict(same[:19])
        detector.offset_ = -1.0
        detector.predict(same)

    def test_calibration_of_a_pipeline(self, photos: list[np.ndarray]) -> None:
        for detector in self._detectors():
            pipeline = make_pipeline(CLIPImageEncoder("tiny"), detector).fit(None)
            scores = pipeline.score_samples(photos)
            labels = np.where(scores >= np.median(scores), 1, -1)
            calibrate_threshold(pipeline, photos, labels)
            np.testing.assert_array_equal(pipeline.predict(photos), labels)


def _count(monkeypatch: pytest.MonkeyPatch, method: str) -> list[int]:
    rows: list[int] = []
    original = getattr(LoadedModel, method)

    def counting(self: LoadedModel, batch: torch.Tensor, *args: Any) -> np.ndarray:
        rows.append(len(batch))
        return original(self, batch, *args)

    monkeypatch.setattr(LoadedModel, method, counting)
    return rows


class TestGridSearch:
    """Searches over real image files."""

    GRID = {
        "words__n_pairs": [30, 60],
        "words__n_words": [(1, 3)],
        "words__word_source": ["letters", ["alpha", "beta", "gamma"]],
        "words__normal_states": [("flawless {}",)],
        "words__anomalous_states": [("damaged {}",), ("broken {}", "damaged {}")],
        "words__templates": [("a photo of a {}.",)],
        "words__classifier__hidden_layer_sizes": [(8,), (8, 8)],
    }

    @pytest.fixture
    def pipeline(self) -> Pipeline:
        classifier = FeedForwardClassifier(min_steps=20, n_epochs=1)
        words = RandomWordDetector("tiny", classifier=classifier, random_state=0)
        return Pipeline([("encoder", CLIPImageEncoder("tiny")), ("words", words)])

    @pytest.mark.parametrize("labels", [(-1, 1), (1, 0), (True, False)])
    @pytest.mark.parametrize("scoring", [None, "auroc", "aupr", "f1_max"])
    @pytest.mark.parametrize("cv", [ZeroShotSplit(), StratifiedKFold(3)], ids=repr)
    def test_best_parameters(
        self,
        cv: Any,
        scoring: str | None,
        labels: tuple[Any, Any],
        pipeline: Pipeline,
        photo_files: list[str],
    ) -> None:
        """The candidate whose own ranking gives the labels must win."""
        grid = {"words__n_pairs": [30, 60], "words__word_source": ["letters", ["x"]]}
        wanted = {"words__n_pairs": 60, "words__word_source": ["x"]}
        pipeline.set_params(words__classifier=LogisticRegression())
        scores = (
            clone(pipeline).set_params(**wanted).fit(None).score_samples(photo_files)
        )
        anomalous = scores < np.median(scores)
        y = np.where(anomalous, labels[0], labels[1])
        search = GridSearchCV(
            pipeline,
            grid,
            cv=cv,
            scoring=None if scoring is None else metrics.get_scorer(scoring),
            error_score="raise",
        ).fit(photo_files, y)
        assert search.best_score_ == 1
        best = dict(
            zip(
                map(repr, search.cv_results_["params"]),
                search.cv_results_["mean_test_score"],
                strict=True,
            )
        )
        assert best[repr(wanted)] == 1
        assert search.score(photo_files, y) == 1

    def test_everything_is_encoded_once(
        self,
        pipeline: Pipeline,
        photo_files: list[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        cache = open_cache("memory")
        assert cache is not None
        cache.clear()
        texts = _count(monkeypatch, "encode_tokens")
        images = _count(monkeypatch, "encode_pixels")
        load(OpenCLIP("tiny"))
        texts.clear()
        y = [1, -1] * 6
        search = GridSearchCV(pipeline, self.GRID, cv=ZeroShotSplit())
        search.fit(photo_files, y)
        distinct: set[str] = set()
        for params in search.cv_results_["params"]:
            words = clone(pipeline).set_params(**params)["words"]
            prompts = random_word_prompts(
                words.n_pairs,
                n_words=words.n_words,
                word_source=words.word_source,
                templates=words.templates,
                normal_states=words.normal_states,
                anomalous_states=words.anomalous_states,
                random_state=np.random.RandomState(0),
            )
            distinct.update(*prompts)
        assert sum(texts) == len(distinct)
        assert sum(images) == len(photo_files)
        search.fit(photo_files, y)
        assert sum(texts) == len(distinct)

    def test_two_jobs(self, photo_files: list[str], tmp_path: Path) -> None:
        """Each process encodes a prompt or an image at most once."""
        words = RandomWordDetector(
            "tiny", classifier=LogisticRegression(), random_state=0
        )
        grid = {"words__n_pairs": [20, 40, 60, 80]}
        y = [1, -1] * 6
        found = []
        for encoder, n_jobs in (
            (LoggingEncoder("tiny", log=str(tmp_path)), 2),
            (CLIPImageEncoder("tiny"), 1),
        ):
            pipeline = Pipeline([("encoder", encoder), ("words", words)])
            # No refit: it would be done, and logged, in this process.
            search = GridSearchCV(
                pipeline, grid, cv=ZeroShotSplit(), n_jobs=n_jobs, refit=False
            ).fit(photo_files, y)
            found.append(search.cv_results_["mean_test_score"])
        np.testing.assert_allclose(found[0], found[1])
        logs = list(tmp_path.glob("*.log"))
        assert len(logs) >= 2
        for log in logs:
            rows = log.read_text().split()
            assert len(rows) == len(set(rows))


class LoggingEncoder(CLIPImageEncoder):
    """Logs a digest of every row that its process sends through a model."""

    def __init__(self, clip: Any = None, *, on_error: str = "raise", log: str = ""):
        super().__init__(clip, on_error=on_error)
        self.log = log

    def transform(self, X: Any) -> Any:
        path = Path(self.log, f"{os.getpid()}.log")
        if not path.exists():
            path.touch()
            # Rows that were encoded before the log began would be missing in it.
            open_cache("memory").clear()  # type: ignore[union-attr]
            for name in ("encode_tokens", "encode_pixels"):
                original = getattr(LoadedModel, name)
                patched = partialmethod(_log_rows, original=original, path=path)
                setattr(LoadedModel, name, patched)
        return super().transform(X)


def _log_rows(
    self: LoadedModel, batch: torch.Tensor, *args: Any, original: Any, path: Path
) -> np.ndarray:
    with path.open("a") as file:
        for row in batch:
            file.write(hashlib.sha256(row.numpy().tobytes()).hexdigest() + "\n")
    return original(self, batch, *args)


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


@pytest.mark.parametrize(
    "detector", [PromptDetector("tiny"), RandomWordDetector("tiny", **FAST)]
)
def test_rows_of_images_that_could_not_be_read(
    detector: Any, embeddings: np.ndarray
) -> None:
    embeddings[[3, 7]] = np.nan
    with pytest.raises(ValueError, match=r"NaN, in 2 of 60 rows: 3, 7\. .*on_error"):
        detector.fit(None).score_samples(embeddings)


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


def test_labels_that_a_search_cannot_use(embeddings: np.ndarray) -> None:
    detector = PromptDetector("tiny")
    with pytest.raises(ValueError, match=r"y holds strings \('bad', 'good'\)"):
        detector.fit(embeddings, ["good", "bad"] * 30)
    search = GridSearchCV(
        detector, {"prompts": ["clip-ac"]}, cv=ZeroShotSplit(), error_score="raise"
    )
    with pytest.raises(ValueError, match=r"y is None.*pass y, to searches"):
        search.fit(embeddings)
