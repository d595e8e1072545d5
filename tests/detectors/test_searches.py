"""Searches over real image files: found again, encoded once, by processes too."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    metrics,
    random_word_prompts,
)
from clipad_sklearn._clip.embedding_cache import open_cache
from clipad_sklearn._clip.loaded_model import LoadedModel
from clipad_sklearn._clip.models import load
from clipad_sklearn.model_selection import ZeroShotSplit


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
        count_rows: Callable[[str], list[int]],
    ) -> None:
        cache = open_cache("memory")
        assert cache is not None
        cache.clear()
        texts = count_rows("encode_tokens")
        images = count_rows("encode_pixels")
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

    @pytest.mark.usefixtures("on_processor")
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


@pytest.mark.usefixtures("on_processor")
def test_processes_of_joblib(photo_files: list[str]) -> None:
    """Those of the search above, if they still run."""
    clip = OpenCLIP("tiny", batch_size=4, embedding_cache=None)
    words = RandomWordDetector(
        clip, n_pairs=50, classifier=LogisticRegression(), random_state=0
    )
    detector = make_pipeline(CLIPImageEncoder(clip), words).fit(None)
    parts = joblib.Parallel(n_jobs=2, backend="loky")(
        joblib.delayed(detector.score_samples)(photo_files[i::2]) for i in range(2)
    )
    expected = detector.score_samples(photo_files)
    for i, scores in enumerate(parts):
        np.testing.assert_allclose(scores, expected[i::2], atol=1e-5)


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


def test_labels_that_a_search_cannot_use(embeddings: np.ndarray) -> None:
    detector = PromptDetector("tiny")
    with pytest.raises(ValueError, match=r"y holds strings \('bad', 'good'\)"):
        detector.fit(embeddings, ["good", "bad"] * 30)
    search = GridSearchCV(
        detector, {"prompts": ["clip-ac"]}, cv=ZeroShotSplit(), error_score="raise"
    )
    with pytest.raises(ValueError, match=r"y is None.*pass y, to searches"):
        search.fit(embeddings)
