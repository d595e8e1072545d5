"""The Python code of the user guide runs as it stands, page by page."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import sklearn
from PIL import Image
from sklearn.pipeline import make_pipeline

import clipad_sklearn
from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    RandomWordDetector,
    list_images,
)
from clipad_sklearn.datasets import make_defect_images

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
# The page on Dask needs a cluster; tests/test_score_images.py has one.
PAGES = sorted(page for page in GUIDE.glob("*.rst") if page.name != "dask.rst")
BLOCK = re.compile(r"^( *)\.\. code-block:: python\n\n((?:\1 +\S.*\n|\n)+)", re.M)


def code_of(page):
    text = page.read_text(encoding="utf-8")
    # Thousands of pairs become single ones, to be quick.
    return [
        textwrap.dedent(block).replace("_000", "") for _, block in BLOCK.findall(text)
    ]


# As many as a promise of 10 % with 95 % confidence needs.
GOOD_PHOTOS = make_defect_images(30, anomaly_fraction=0, size=64, random_state=1).images


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("matplotlib").use("Agg")
    # Far fewer than the default: enough to see that it runs.
    monkeypatch.setitem(RandomWordDetector.__init__.__kwdefaults__, "n_pairs", 20)
    monkeypatch.setitem(FeedForwardClassifier.__init__.__kwdefaults__, "min_steps", 20)
    data = make_defect_images(24, size=64, random_state=0)
    for folder, images in (("photos", data.images), ("good", GOOD_PHOTOS)):
        Path(folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(f"{folder}/{i:02d}.png")
    photos = list_images("photos")
    encoder = CLIPImageEncoder("tiny")
    words = RandomWordDetector("tiny", random_state=0)
    return {name: getattr(clipad_sklearn, name) for name in clipad_sklearn.__all__} | {
        "make_pipeline": make_pipeline,
        "clip": "tiny",
        "photos": photos,
        "labels": data.target,
        "names": data.family,
        "good_photos": GOOD_PHOTOS,
        "good_photos_of_product": {"bolt": GOOD_PHOTOS[:10], "nut": GOOD_PHOTOS[10:]},
        "new_photos": photos[:3],
        "embeddings": encoder.transform(photos[:3]),
        "detector": make_pipeline(encoder, words).fit(None),
    }


def test_there_is_code():
    assert sum(len(code_of(page)) for page in PAGES) >= 15


@pytest.mark.parametrize(
    "page", [page for page in PAGES if code_of(page)], ids=lambda page: page.name
)
def test_code_runs(page, names):
    if page.name == "saving.rst":
        pytest.importorskip("skops.io")
    if page.name == "threshold.rst":
        pytest.importorskip("scipy", "1.11")
    with sklearn.config_context():
        for code in code_of(page):
            exec(compile(code, page.name, "exec"), names)
