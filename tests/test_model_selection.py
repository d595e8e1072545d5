from __future__ import annotations

import pickle

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor
from scipy import sparse
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    check_cv,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from clipad_sklearn.metrics import get_scorer
from clipad_sklearn.model_selection import ZeroShotSplit


class LengthDetector(OutlierMixin, BaseEstimator):
    """Scores a path by one of its letters; fit learns how many samples it got."""

    def __init__(self, position=0):
        self.position = position

    def fit(self, X, y=None):
        self.offset_ = 0.0
        self.n_samples_ = len(X)
        return self

    def score_samples(self, X):
        return -np.array([float(path[self.position]) for path in X])


PATHS = ["00.png", "31.png", "12.png", "23.png", "04.png", "55.png"]


@pytest.mark.parametrize(
    ("X", "y"),
    [
        (["a", "b", "c"], None),
        (("a", "b", "c"), [1, 1, -1]),
        (np.zeros((3, 4)), None),
        (np.zeros((3, 8, 8, 3)), None),
        (sparse.csr_matrix((3, 4)), None),
        (None, [1, 1, -1]),
        (None, np.array([1, 1, -1])),
    ],
)
def test_one_split_with_all_samples_twice(X, y):
    cv = ZeroShotSplit()
    [(train, test)] = cv.split(X, y, groups=[1, 2, 3])
    np.testing.assert_array_equal(train, [0, 1, 2])
    np.testing.assert_array_equal(test, [0, 1, 2])
    assert train is not test
    assert cv.get_n_splits(X, y) == cv.get_n_splits() == 1


def test_a_data_frame():
    pandas = pytest.importorskip("pandas")
    [(train, _)] = ZeroShotSplit().split(pandas.DataFrame({"path": PATHS}))
    assert len(train) == len(PATHS)


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [(None, None, "needs X or y"), ([], None, "X is empty")],
)
def test_nothing_to_split(X, y, message):
    with pytest.raises(ValueError, match=message):
        list(ZeroShotSplit().split(X, y))


def test_repr_and_copies():
    cv = ZeroShotSplit()
    assert repr(cv) == "ZeroShotSplit()"
    assert repr(pickle.loads(pickle.dumps(cv))) == "ZeroShotSplit()"
    assert check_cv(cv) is cv


@pytest.mark.parametrize("y", [[1, 1, 1, -1, -1, -1], [0, 0, 0, 1, 1, 1]])
def test_grid_search_over_paths(y):
    search = GridSearchCV(
        make_pipeline(FunctionTransformer(), LengthDetector()),
        {"lengthdetector__position": [0, 1]},
        scoring=get_scorer("auroc"),
        cv=ZeroShotSplit(),
    )
    search.fit(PATHS, y)
    assert search.n_splits_ == 1
    assert search.best_params_ == {"lengthdetector__position": 1}
    assert search.best_score_ == 1.0
    assert search.cv_results_["mean_test_score"][0] == pytest.approx(5.5 / 9)
    assert search.best_estimator_[-1].n_samples_ == len(PATHS)
    assert get_scorer("auroc")(search, PATHS, y) == 1.0
    assert "ZeroShotSplit()" in repr(search)
    assert isinstance(clone(search).cv, ZeroShotSplit)


def test_cross_val_score_and_several_metrics():
    y = [1, 1, 1, -1, -1, -1]
    scores = cross_val_score(
        LengthDetector(1), PATHS, y, scoring=get_scorer("f1_max"), cv=ZeroShotSplit()
    )
    np.testing.assert_array_equal(scores, [1.0])
    names = ("auroc", "aupr", "f1_max")
    search = GridSearchCV(
        LengthDetector(),
        {"position": [0, 1]},
        scoring={name: get_scorer(name) for name in names},
        refit="aupr",
        cv=StratifiedKFold(3),
        n_jobs=2,
    ).fit(PATHS, y)
    # These processes have no torch: loading it in them would be taken for a leak.
    get_reusable_executor().shutdown()
    assert search.best_params_ == {"position": 1}
    for name in names:
        assert search.cv_results_[f"mean_test_{name}"][1] == 1.0


def test_grid_search_with_metadata_routing():
    import sklearn

    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            LengthDetector(),
            {"position": [0, 1]},
            scoring=get_scorer("auroc"),
            cv=ZeroShotSplit(),
        ).fit(PATHS, [0, 0, 0, 1, 1, 1])
    assert search.best_params_ == {"position": 1}
