"""Displays of scores, searches and embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from clipad_sklearn import CLIPImageEncoder, PromptDetector, RandomWordDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit
from clipad_sklearn.plotting import PromptDisplay, ScoreDisplay, SearchDisplay

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def data() -> Any:
    return make_defect_images(12, size=64, random_state=0)


def counts(ax: Any) -> float:
    return sum(patch.get_height() for patch in ax.patches)


def test_scores_by_label_with_the_threshold(data: Any) -> None:
    detector = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny")).fit(None)
    detector[-1].offset_ = 0.25
    display = ScoreDisplay.from_estimator(detector, data.images, data.target, bins=5)
    assert counts(display.ax_) == 12
    assert display.line_.get_xdata() == [0.25, 0.25]
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["normal (6)", "anomalous (6)", "threshold 0.25"]
    np.testing.assert_allclose(display.margins, detector.score_samples(data.images))
    assert display.figure_ is display.ax_.figure


def test_scores_without_labels_and_on_given_axes() -> None:
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    display = ScoreDisplay.from_predictions([1.0, np.nan, 2.0], ax=ax)
    assert display.ax_ is ax
    assert display.line_ is None
    assert counts(ax) == 2
    assert display.plot() is display
    assert display.ax_ is not ax


def test_scores_that_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match="3 margins but 2 labels"):
        ScoreDisplay.from_predictions([1, 2, 3], [1, -1])
    with pytest.raises(ValueError, match="no finite margin"):
        ScoreDisplay.from_predictions([np.nan])
    with pytest.raises(ValueError, match="one number per sample"):
        ScoreDisplay.from_predictions([[1.0, 2.0]])
    with pytest.raises(TypeError, match="has no score_samples"):
        ScoreDisplay.from_estimator(CLIPImageEncoder("tiny"), [])


def test_search_curves_average_seeds(data: Any) -> None:
    embeddings = CLIPImageEncoder("tiny").transform(data.images)
    from sklearn.linear_model import LogisticRegression

    grid = {
        "n_pairs": [4, 100],
        "word_source": ["letters", "vocabulary"],
        "random_state": [0, 1],
        "classifier": [LogisticRegression()],
    }
    search = GridSearchCV(
        RandomWordDetector("tiny"), grid, cv=ZeroShotSplit(), refit=False
    ).fit(embeddings, data.target)
    display = SearchDisplay.from_estimator(search, "n_pairs")
    assert len(display.lines_) == 2
    assert display.ax_.get_xscale() == "log"
    assert display.ax_.get_xlabel() == "n_pairs"
    for source, line in zip(("letters", "vocabulary"), display.lines_, strict=True):
        assert line.get_label() == f"word_source={source}"
        expected = [
            np.mean(
                [
                    score
                    for params, score in zip(
                        search.cv_results_["params"],
                        search.cv_results_["mean_test_score"],
                        strict=True,
                    )
                    if params["n_pairs"] == n and params["word_source"] == source
                ]
            )
            for n in grid["n_pairs"]
        ]
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert len(display.ax_.collections) == 2  # the bands

    by_source = SearchDisplay.from_estimator(search, "word_source")
    ticks = [text.get_text() for text in by_source.ax_.get_xticklabels()]
    assert ticks == ["letters", "vocabulary"]


def test_search_over_pairs_and_with_gaps() -> None:
    params = [{"n_words": 1}, {"n_words": (1, 5)}, {"n_words": 1, "center": "text"}]
    results = {"params": params, "mean_test_score": [0.5, 0.6, 0.7]}
    display = SearchDisplay.from_predictions(results, "n_words", score_name="AP")
    assert [line.get_ydata().tolist() for line in display.lines_] == [[0.5, 0.6], [0.7]]
    ticks = [text.get_text() for text in display.ax_.get_xticklabels()]
    assert ticks == ["1", "(1, 5)"]
    assert display.ax_.get_ylabel() == "AP"
    with pytest.raises(ValueError, match=r"'k' was not searched.*center, n_words"):
        SearchDisplay.from_predictions(results, "k")
    with pytest.raises(TypeError, match="no cv_results_"):
        SearchDisplay.from_estimator(PromptDetector(), "n_words")


def test_prompts_and_images_lie_apart(data: Any) -> None:
    display = PromptDisplay.from_estimator("tiny", data.images, data.target)
    assert display.points["normal prompts"].shape == (7 * 22, 2)
    assert display.points["anomalous images"].shape == (6, 2)
    assert 0 < display.gap < 2
    assert 0 < sum(display.explained) <= 1 + 1e-9
    assert len(display.ax_.collections) == 4

    pairs = (["a good thing"], ["a bad thing"])
    display = PromptDisplay.from_estimator("tiny", data.images, prompts=pairs)
    assert sorted(display.points) == ["anomalous prompts", "images", "normal prompts"]


def test_embeddings_that_do_not_fit(rng: np.random.Generator) -> None:
    texts, images = rng.normal(size=(3, 8)), rng.normal(size=(4, 6))
    with pytest.raises(ValueError, match="same number of features"):
        PromptDisplay.from_predictions(texts, texts, images)
    with pytest.raises(ValueError, match="3 images but 2 labels"):
        PromptDisplay.from_predictions(texts, texts, texts, [1, -1])
