"""Importing and handling the estimators costs neither torch nor matplotlib."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import pickle, sys
from sklearn.base import BaseEstimator, clone
import clipad_sklearn

for name in (*clipad_sklearn.__all__, "datasets", "metrics", "model_selection"):
    value = getattr(clipad_sklearn, name)
    if not (isinstance(value, type) and issubclass(value, BaseEstimator)):
        continue
    words = clipad_sklearn.RandomWordDetector()
    required = {"FusionDetector": ([("words", words)],)}
    for wrapper in ("CalibratedThresholdDetector", "TiledDetector"):
        required[wrapper] = (words,)
    estimator = value(*required.get(name, ()))
    for one in (estimator, clone(estimator)):
        repr(one)
        one._repr_html_()
        one.get_params()
        one.set_params(**one.get_params(deep=False))
        pickle.loads(pickle.dumps(one))
    print(name)
heavy = {"torch", "torchvision", "open_clip", "matplotlib", "PIL"}
print("imported:", *sorted(heavy & set(sys.modules)))
"""


def test_nothing_heavy_is_imported() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    *names, imported = result.stdout.splitlines()
    assert imported == "imported:"
    assert {"OpenCLIP", "CLIPImageEncoder", "RandomWordDetector"} <= set(names)


def test_every_public_name_is_listed() -> None:
    import clipad_sklearn

    assert set(clipad_sklearn.__all__) <= set(dir(clipad_sklearn))
    for name in clipad_sklearn.__all__:
        assert getattr(clipad_sklearn, name).__doc__, name
