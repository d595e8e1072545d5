"""Threads, processes, interrupted fits, and writes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import Forked
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    SDPDetector,
    SDPPlusDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._cli.main import main

UNCACHED = OpenCLIP("tiny", batch_size=4, embedding_cache=None)
LOGISTIC = LogisticRegression()
needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def words(**params: Any) -> RandomWordDetector:
    params = {"n_pairs": 50, "classifier": LOGISTIC, "random_state": 0} | params
    return RandomWordDetector(UNCACHED, **params)


def pipelines() -> list[Any]:
    members = [("words", words()), ("prompts", PromptDetector(UNCACHED))]
    detectors = [words(), PromptDetector(UNCACHED), FusionDetector(members)]
    return [make_pipeline(CLIPImageEncoder(UNCACHED), one) for one in detectors]


# -- threads ---------------------------------------------------------------------


def test_eight_threads_score_as_one(photo_files: list[str]) -> None:
    """From the first loading on, on one detector and on several."""
    fitted = [pipeline.fit(None) for pipeline in pipelines()]
    expected = [detector.score_samples(photo_files) for detector in fitted]
    clear_models()
    # Files that Pillow has opened but not read yet, some of them by several threads.
    opened = [Image.open(path) for path in photo_files]
    jobs = [
        (i, detector, images)
        for images in (photo_files, opened)
        for i, detector in enumerate([fitted[0]] * 6 + fitted)
    ]
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda job: job[1].score_samples(job[2]), jobs))
    for (i, _, _), found in zip(jobs, scores, strict=True):
        np.testing.assert_allclose(found, expected[max(0, i - 6)], atol=1e-5)


@pytest.mark.usefixtures("on_processor")
def test_one_opened_image_many_times(photo_files: list[str]) -> None:
    """The threads that read ahead meet in the same object."""
    expected = UNCACHED.encode_image(photo_files[:1])
    for _ in range(20):
        opened = Image.open(photo_files[0])
        found = UNCACHED.encode_image([opened] * 8)
        np.testing.assert_allclose(found, np.repeat(expected, 8, axis=0), atol=1e-6)


# -- processes -------------------------------------------------------------------


_SCRIPT = """
import multiprocessing
import numpy as np
from sklearn.pipeline import make_pipeline
from clipad_sklearn import CLIPImageEncoder, OpenCLIP, RandomWordDetector
from clipad_sklearn import FeedForwardClassifier

rng = np.random.default_rng(0)
photos = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(8)]
clip = OpenCLIP("tiny", embedding_cache=None)
classifier = FeedForwardClassifier((64,), min_steps=40, n_epochs=1)
detector = make_pipeline(
    CLIPImageEncoder(clip),
    RandomWordDetector(clip, n_pairs=40, classifier=classifier, random_state=0),
)

def fit_and_score(detector):
    return detector.fit(None).score_samples(photos)

expected = fit_and_score(detector)
with multiprocessing.get_context("fork").Pool(1) as pool:
    scores = pool.apply_async(detector.score_samples, (photos,)).get(200)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    scores = pool.apply_async(fit_and_score, (detector,)).get(200)
    np.testing.assert_allclose(scores, expected, atol=1e-2)
print("done")
"""


@needs_posix
def test_forked_after_torch_has_computed() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        # More than one thread, or there would be nothing that a fork could lose.
        env=os.environ | {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


# -- interrupted fits ------------------------------------------------------------


def _trained(detector: SDPPlusDetector, photos: list[Any]) -> Any:
    masks = [np.ones(photo.shape[:2], bool) for photo in photos]
    return detector.fit(photos, masks)


# A detector, what is changed before the second fit, and how it is fitted.
FITS: dict[str, tuple[Any, dict[str, Any], Callable[[Any, Any], Any]]] = {
    "words": (
        words(center="text"),
        {"n_pairs": 300, "center": None},
        lambda d, _: d.fit(),
    ),
    "prompts": (
        PromptDetector(UNCACHED, prompts="clip-ac"),
        {"prompts": "winclip", "class_name": "bolt"},
        lambda d, _: d.fit(class_name=None),
    ),
    "fusion": (
        FusionDetector([("words", words()), ("prompts", PromptDetector(UNCACHED))]),
        {"words__n_pairs": 100},
        lambda d, _: d.fit(),
    ),
    "winclip": (
        WinCLIPDetector(UNCACHED, window_sizes=(3,)),
        {"pixel_contamination": 0.1, "contamination": 0.1},
        lambda d, photos: d.fit(photos[:4]),
    ),
    "sdp": (
        SDPDetector(UNCACHED),
        {"pixel_contamination": 0.1, "contamination": 0.1},
        lambda d, photos: d.fit(photos),
    ),
    "sdp+": (
        SDPPlusDetector(UNCACHED, n_epochs=1, random_state=0),
        {"n_epochs": 3, "pixel_contamination": 0.1},
        _trained,
    ),
}


@pytest.fixture
def interrupt_after() -> Iterator[Callable[[float], None]]:
    """Raises KeyboardInterrupt after that many seconds; 0 takes that back."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)


@needs_posix
@pytest.mark.parametrize("name", FITS)
# An interrupted generator or thread may have something to say when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupted_fit_changes_nothing(
    name: str, photos: list[Any], interrupt_after: Callable[[float], None]
) -> None:
    detector, params, fit = FITS[name]
    detector = fit(clone(detector), photos).set_params(**params)
    before = dict(vars(detector))
    n_interrupted, seconds = 0, 0.001
    while True:
        try:
            interrupt_after(seconds)
            fit(detector, photos)
            interrupt_after(0)
            break
        except KeyboardInterrupt:
            n_interrupted += 1
            seconds *= 1.7
        assert vars(detector).keys() == before.keys()
        for attribute, value in before.items():
            assert vars(detector)[attribute] is value, attribute
    assert n_interrupted
    assert any(vars(detector)[name] is not value for name, value in before.items())


@pytest.mark.parametrize("name", FITS)
def test_failed_fit_changes_nothing(name: str, photos: list[Any]) -> None:
    detector, _, fit = FITS[name]
    detector = fit(clone(detector), photos).set_params(contamination=0.1)
    before = dict(vars(detector))
    with pytest.raises(ValueError, match=r"could not be read|NaN"):
        detector.fit(
            [photos[0], "missing.png"]
            if name in ("winclip", "sdp", "sdp+")
            else np.full((2, 128), np.nan),
            *([[None, np.ones((4, 4))]] if name == "sdp+" else []),
        )
    assert vars(detector) == before


# -- killed writes ---------------------------------------------------------------


@pytest.mark.usefixtures("on_processor")
@pytest.mark.parametrize("n_files", [1, 5])
def test_killed_while_writing_maps(
    n_files: int, photo_files: list[str], tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    options = ["--clip", "tiny", "--method", "sdp", "--maps", str(maps)]
    process = Forked(lambda: main(["score", *photo_files, *options]))
    process.kill_when(lambda: len(list(maps.glob("*.png"))) >= n_files)
    written = list(maps.glob("*.png"))
    assert len(written) >= n_files
    for path in written:
        with Image.open(path) as image:
            image.load()  # raises where anything is missing


@pytest.mark.usefixtures("on_processor")
def test_killed_while_saving_layers(tmp_path: Path) -> None:
    path = tmp_path / "layers.safetensors"
    detector = SDPPlusDetector("tiny")
    detector.coefs_ = np.zeros((4, 128, 192), np.float32)
    detector.intercepts_ = np.zeros((4, 128), np.float32)

    def save() -> None:
        while True:
            detector.save_layers(path)

    Forked(save).kill_when(path.exists)
    from safetensors.numpy import load_file

    assert load_file(path)["coefs"].shape == (4, 128, 192)


def test_layers_that_cannot_be_saved_leave_the_earlier_ones(
    photos: list[Any], tmp_path: Path
) -> None:
    detector = _trained(SDPPlusDetector(UNCACHED, n_epochs=1, random_state=0), photos)
    path = tmp_path / "layers.safetensors"
    detector.save_layers(path)
    before = path.read_bytes()
    detector.coefs_ = np.array(["not numbers"])
    with pytest.raises(Exception):  # noqa: B017, PT011  safetensors decides which
        detector.save_layers(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_no_lock_of_progress_bars_where_nobody_sees_them() -> None:
    """An interrupt inside tqdm leaves its lock taken, and nothing may wait for it."""
    from tqdm.auto import tqdm

    network = FeedForwardClassifier((16,), min_steps=5, n_epochs=1)
    words = RandomWordDetector("tiny", n_pairs=50, classifier=network, random_state=0)
    detector = make_pipeline(CLIPImageEncoder("tiny"), words)
    photos = [np.full((40, 40, 3), shade, np.uint8) for shade in (50, 200)]
    with ThreadPoolExecutor(1) as pool, tqdm.get_lock():
        scored = pool.submit(lambda: detector.fit(photos).score_samples(photos))
        assert scored.result(timeout=60).shape == (2,)
