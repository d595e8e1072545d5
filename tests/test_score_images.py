"""`score_images` and ``clipad score --dask``: real clusters, real kills."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image
from processes import Forked
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils import get_tags

import clipad_sklearn
from clipad_sklearn import (
    CalibratedThresholdDetector,
    CLIPImageEncoder,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    SDPDetector,
    WinCLIPDetector,
    calibrate_threshold,
    clear_models,
    score_images,
)
from clipad_sklearn._cli import score as score_command
from clipad_sklearn._cli.main import main
from clipad_sklearn._cli.output import UsageError
from clipad_sklearn._clip.models import n_features
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit

pytestmark = pytest.mark.usefixtures("on_processor")

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra [dask]")
pandas = pytest.importorskip("pandas", reason="reads the data set with pandas")
distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")

RANDOM = np.random.default_rng(0).random((8, 4))
COLUMNS = [
    "path",
    "p_anomaly",
    "p_value",
    "margin",
    "threshold",
    "verdict",
    "error",
]

# What a killed client was: arguments are the saved detector, the list of images, the
# folder, the size of a partition, and the scheduler, if any.
CLIENT = """
import contextlib, json, sys
import joblib
from clipad_sklearn import score_images
detector, images, out, size, *address = sys.argv[1:]
client = None
if address:
    from distributed import Client
    client = Client(address[0])
with open(images) as file:
    paths = json.load(file)
score_images(
    joblib.load(detector), paths, out=out, client=client, partition_size=int(size)
)
"""


def new_detector(clip: Any = "tiny", **params: Any) -> Pipeline:
    return make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip, **params))


@pytest.fixture(scope="module")
def detector() -> Pipeline:
    return new_detector().fit(None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of 24 photos."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [str(folder / f"{i:02d}.png") for i in range(24)]
    for path, pixels in zip(
        paths, make_defect_images(24, size=48, random_state=0).images, strict=True
    ):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes of one thread each, and others in place of killed ones.

    They are forks of a process that has the libraries, or each would take seconds to
    start; `test_command_on_this_machine` starts one as a user does.
    """
    import dask

    if hasattr(os, "fork"):
        method = {"distributed.worker.multiprocessing-method": "forkserver"}
    else:
        method = {}
    with dask.config.set(method):
        if method:
            context = distributed.utils.get_mp_context()  # sets a list of its own
            context.set_forkserver_preload(["distributed", "open_clip", "sklearn.svm"])
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client


@pytest.fixture
def saved(detector: Pipeline, photos: list[str], tmp_path: Path) -> list[str]:
    """First arguments of a client process: the detector, and the list of images."""
    joblib.dump(detector, tmp_path / "detector.joblib")
    (tmp_path / "images.json").write_text(json.dumps(photos))
    return [str(tmp_path / "detector.joblib"), str(tmp_path / "images.json")]


def overflowing(folder: Path) -> Path:
    """A CLIP whose image embeddings are too large for float16."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(Path(clipad_sklearn.__file__).parent / "tiny", folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.proj"] *= 2e4
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


class HalfScores:
    """Scores every other sample with what is not a number."""

    offset_ = 0.0

    def fit(self, X: Any, y: Any = None) -> HalfScores:
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        return np.where(np.arange(len(X)) % 2, np.inf, 1.0)


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CLIENT, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def parts(out: Path) -> dict[str, tuple[int, int]]:
    """The files of the data set; the values change when one is rewritten."""
    states = {path.name: path.stat() for path in out.glob("*.parquet")}
    return {name: (s.st_ino, s.st_mtime_ns) for name, s in sorted(states.items())}


def wait_for_parts(out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(parts(out)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check_rows(out: Path, detector: Pipeline, paths: list[str]) -> None:
    """All photos are there, once, in order, with the scores of the detector."""
    rows = pandas.read_parquet(out)
    assert list(rows) == COLUMNS
    assert list(rows["path"]) == paths
    # Cosines agree to 1e-6; margins are cosines divided by the temperature. (On one
    # processor of 16 cores the sizes of batches moved a cosine by 1.2e-6.)
    expected, temperature = detector.score_samples(paths), detector[-1].temperature
    np.testing.assert_allclose(
        rows["margin"] * temperature, expected * temperature, rtol=0, atol=1e-6
    )
    assert set(rows["error"]) == {""}
    assert not [name for name in os.listdir(out) if name.startswith(".")]


# -- rows ------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [False, True])
def test_a_calibrated_pipeline_takes_images(
    freeze: bool, photos: list[str], tmp_path: Path
) -> None:
    words = new_detector().fit(None)
    words = FrozenEstimator(words) if freeze else words
    detector = CalibratedThresholdDetector(words, calibration_size=1.0).fit(photos)
    score_images(detector, photos, out=tmp_path / "dataset")
    rows = pandas.read_parquet(tmp_path / "dataset")
    expected = detector.score_samples(photos)
    np.testing.assert_allclose(rows["margin"], expected, atol=1e-4)
    saved = str(tmp_path / "saved.joblib")
    joblib.dump(detector, saved)
    out = tmp_path / "scores.json"
    assert main(["score", *photos, "--load", saved, "--out", str(out)]) == 0
    found = [row["margin"] for row in json.loads(out.read_text())["scores"]]
    np.testing.assert_allclose(sorted(found), sorted(expected), atol=1e-4)
    assert not get_tags(detector).input_tags.two_d_array


def test_rows_are_those_of_the_command(
    photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hostile names and photos that cannot be read, with relative paths."""
    monkeypatch.chdir(tmp_path)
    names = [
        "line\nbreak.png",
        'a,"b".png',
        "'quoted'.png",
        "=1+1.png",
        "ünï ☃.png",
        os.fsdecode(b"not-unicode-\xff.png"),
    ]
    try:
        for name, photo in zip(names, photos, strict=False):
            shutil.copy(photo, name)
    except OSError:
        pytest.skip("this file system refuses such names")
    Path("empty.png").touch()
    Path("text.png").write_text("no image")
    Path("truncated.png").write_bytes(Path(photos[0]).read_bytes()[:200])
    names += ["empty.png", "text.png", "truncated.png", "missing.png", *photos[6:9]]
    options = ["--clip", "tiny", "--method", "prompt", "--threshold", "0.5"]
    assert main(["score", *options, "--out", "scores.csv", "--", *names]) == 1

    detector = new_detector().fit(None)
    detector[-1].offset_ = 0.5
    done = score_images(detector, names, out="scores", partition_size=4)
    assert (done.n_images, done.n_unreadable, done.n_partitions) == (13, 4, 4)
    table = parquet.read_table("scores")
    assert [str(kind) for kind in table.schema.types] == (
        ["string"] + 4 * ["double"] + 2 * ["string"]
    )
    rows = table.to_pylist()
    written = [name.replace("\udcff", "\\udcff") for name in names]
    assert [row["path"] for row in rows] == written
    assert done.n_anomalous == sum(row["verdict"] == "anomalous" for row in rows)

    with open("scores.csv", encoding="utf-8-sig", newline="") as file:
        of_command = {
            row["path"].removeprefix("'"): row for row in csv.DictReader(file)
        }
    assert len(of_command) == len(rows)
    for row in rows:
        other = of_command[row["path"]]
        assert row["error"] == other["error"]
        assert (row["verdict"] or "unreadable") == other["verdict"]
        assert row["p_value"] is None
        for name in ("p_anomaly", "margin", "threshold"):
            if row["error"]:
                assert row[name] is None
                assert other[name] == ""
            else:
                assert row[name] == pytest.approx(float(other[name]), 1e-5, 1e-6)


def test_p_values_of_a_calibrated_detector(photos: list[str], tmp_path: Path) -> None:
    detector = new_detector().fit(None)
    calibrate_threshold(detector, photos[:6], max_false_alarm=0.4)
    (tmp_path / "empty.png").touch()
    paths = [*photos[6:9], str(tmp_path / "empty.png")]
    score_images(detector, paths, out=tmp_path / "scores")
    found = pandas.read_parquet(tmp_path / "scores")["p_value"]
    expected = detector[-1].p_values(detector[0].transform(paths[:3]))
    np.testing.assert_allclose(found[:3], expected)
    assert np.isnan(found[3])


def test_pipelines_with_more_steps_and_other_sequences(
    photos: list[str], tmp_path: Path
) -> None:
    detector = make_pipeline(
        CLIPImageEncoder("tiny"), FunctionTransformer(), PromptDetector("tiny")
    ).fit(None)
    paths = np.array(photos[:3])
    score_images(detector, paths, out=str(tmp_path / "a"))
    check_rows(tmp_path / "a", detector, photos[:3])
    score_images(detector, map(Path, photos[:3]), out=tmp_path / "b")
    check_rows(tmp_path / "b", detector, photos[:3])


@pytest.mark.parametrize(
    "new",
    [
        lambda: WinCLIPDetector("tiny", window_sizes=(2,)),
        lambda: SDPDetector("tiny"),
        lambda: FusionDetector(
            [("a", WinCLIPDetector("tiny", window_sizes=(2,))), ("b", new_detector())]
        ),
    ],
    ids=["WinCLIP", "SDP", "Fusion"],
)
def test_detectors_on_images(
    new: Any, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of three, so that some have a photo that cannot be read."""
    monkeypatch.setattr("clipad_sklearn._score_rows._CHUNK", 3)
    detector = new().fit()
    paths = [*photos[:2], "missing.png", *photos[2:5], __file__]
    done = score_images(detector, paths, out=tmp_path / "out")
    rows = pandas.read_parquet(tmp_path / "out")
    assert list(rows["path"]) == paths
    assert done.n_unreadable == 2
    assert rows["error"][2] == "no such file"
    assert rows["verdict"][[2, 6]].isna().all()
    read = rows[rows["error"] == ""]
    np.testing.assert_allclose(
        read["margin"], detector.score_samples(photos[:5]), atol=1e-4
    )


@pytest.mark.parametrize("last", [OneClassSVM(nu=0.5), IsolationForest(random_state=0)])
def test_detectors_of_other_libraries(
    last: Any, photos: list[str], tmp_path: Path
) -> None:
    detector = make_pipeline(CLIPImageEncoder("tiny"), last).fit(photos)
    done = score_images(detector, photos, out=tmp_path / "out")
    rows = pandas.read_parquet(tmp_path / "out")
    assert rows["p_anomaly"].isna().all()
    verdicts = np.where(rows["verdict"] == "normal", 1, -1)
    np.testing.assert_array_equal(verdicts, detector.predict(photos))
    assert done.n_anomalous == (verdicts == -1).sum()


@pytest.mark.parametrize("kind", ["embedding", "score", "of images"])
def test_a_score_that_is_no_number_is_no_verdict(
    kind: str, photos: list[str], tmp_path: Path
) -> None:
    detector: Any
    if kind == "embedding":
        clip = OpenCLIP(str(overflowing(tmp_path / "clip")), None, precision="fp16")
        detector = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)).fit(None)
    elif kind == "score":
        detector = make_pipeline(CLIPImageEncoder("tiny"), HalfScores())
    else:
        detector = HalfScores()
    done = score_images(detector, photos, out=tmp_path / "out")
    rows = pandas.read_parquet(tmp_path / "out")
    assert len(rows) == len(photos)
    bad = rows["margin"].isna()
    assert done.n_unreadable == bad.sum() > 0
    assert rows["verdict"][bad].isna().all()
    assert rows["error"][bad].str.contains("not a number").all()
    assert rows["verdict"][~bad].notna().all()


def test_uncalibrated_verdicts_that_are_all_the_same(
    photos: list[str], tmp_path: Path
) -> None:
    detector = new_detector().fit(None)
    normal = [photos[int(np.argmax(detector.score_samples(photos)))]] * 20
    with pytest.warns(UserWarning, match="All 20 images were classified as normal"):
        score_images(detector, normal, out=tmp_path / "a")
    detector[-1].offset_ = -100.0
    score_images(detector, normal, out=tmp_path / "b")


# -- errors ----------------------------------------------------------------------


def with_threshold(threshold: Any) -> Pipeline:
    detector = new_detector().fit(None)
    detector[-1].offset_ = threshold
    return detector


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": []}, ValueError, "empty list"),
        ({"images": None}, ValueError, "got None"),
        ({"images": "one.png"}, ValueError, "Wrap it in a list"),
        ({"images": [np.zeros((4, 4, 3), np.uint8)]}, TypeError, "expected paths"),
        ({"images": ["a.png", 3]}, TypeError, r"images\[1\] is a int"),
        ({"detector": new_detector()}, NotFittedError, "not fitted"),
        (
            {"detector": PromptDetector("tiny").fit()},
            TypeError,
            r"PromptDetector takes embeddings: put it behind an encoder, make_pipeline",
        ),
        (
            {"detector": make_pipeline(CLIPImageEncoder("tiny"), IsolationForest())},
            NotFittedError,
            "not fitted",
        ),
        (
            {"detector": make_pipeline(CLIPImageEncoder("tiny"), PCA(2).fit(RANDOM))},
            TypeError,
            "a Pipeline whose last step is PCA, which has no threshold offset_",
        ),
        (
            {"detector": make_pipeline(CLIPImageEncoder("tiny"), StandardScaler())},
            TypeError,
            "a Pipeline whose last step is StandardScaler, which has no score_samples",
        ),
        (
            {"detector": make_pipeline(StandardScaler(), IsolationForest())},
            TypeError,
            "found the steps StandardScaler, IsolationForest",
        ),
        (
            {
                "detector": CalibratedThresholdDetector(
                    make_pipeline(StandardScaler(), IsolationForest())
                )
            },
            TypeError,
            "CalibratedThresholdDetector takes embeddings",
        ),
        ({"detector": WinCLIPDetector("tiny")}, NotFittedError, "not fitted"),
        ({"detector": with_threshold(np.nan)}, ValueError, "offset_=nan: expected"),
        ({"detector": with_threshold("low")}, ValueError, "offset_='low': expected"),
        ({"detector": 3}, TypeError, "found int, which has no score_samples"),
        ({"partition_size": 0}, ValueError, "partition_size=0"),
        ({"partition_size": 2.5}, ValueError, "partition_size=2.5"),
        ({"partition_size": True}, ValueError, "partition_size=True"),
        ({"client": "tcp://127.0.0.1:8786"}, TypeError, "expected a dask.distributed"),
        ({"out": "file"}, ValueError, "is a file"),
        (
            {"out": "full"},
            ValueError,
            "is not empty and holds no scores of score_images",
        ),
        ({"out": "damaged"}, ValueError, "_manifest.json is damaged"),
        ({"out": "file/below"}, ValueError, "is a file"),
    ],
)
def test_wrong_arguments(
    change: dict[str, Any],
    error: type[Exception],
    message: str,
    detector: Pipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for name, content in (("full/mine.csv", "1"), ("damaged/_manifest.json", "[]")):
        Path(name).parent.mkdir()
        Path(name).write_text(content)
    before = sorted(os.walk("."))
    given = {"detector": detector, "images": ["a.png"], "out": "out"} | change
    with pytest.raises(error, match=message):
        score_images(given.pop("detector"), given.pop("images"), **given)
    assert sorted(os.walk(".")) == before


def test_a_detector_that_cannot_be_sent(detector: Pipeline, tmp_path: Path) -> None:
    steps = [("encode", detector[0]), ("same", FunctionTransformer(lambda X: X))]
    unsendable = Pipeline([*steps, ("detect", detector[-1])])
    with pytest.raises(TypeError, match=r"cannot be sent to workers .*lambda"):
        score_images(unsendable, ["a.png"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 5}, r"another list of images \(6 there, 5 now\)"),
        ({"images": [1, 0, 2, 3, 4, 5]}, "other paths or in another order"),
        ({"partition_size": 3}, r"another `partition_size` \(2 there, 3 now\)"),
        ({"class_name": "bolt"}, "another detector.*there.*class_name='bolt'.* now"),
        ({"offset": 0.25}, "another detector of the same settings"),
        ({"version": "0.0"}, r"another version of clipad-sklearn \(0.0 there"),
        ({"weights": "none"}, "other weights of CLIP"),
        ({"images": 5, "partition_size": 3}, "list of images.*; another `partition_"),
    ],
)
def test_a_folder_of_something_else(
    change: dict[str, Any], message: str, photos: list[str], tmp_path: Path
) -> None:
    paths = photos[:6]
    detector = new_detector().fit(None)
    score_images(detector, paths, out=tmp_path, partition_size=2)
    before = parts(tmp_path)
    manifest = tmp_path / "_manifest.json"
    for name in {"version", "weights"} & set(change):
        # As another version, or a machine with other weights, would have written it.
        content = json.loads(manifest.read_text()) | {name: change[name]}
        manifest.write_text(json.dumps(content))
    kept = manifest.read_bytes()
    if "class_name" in change:
        detector = new_detector(class_name="bolt").fit(None)
    detector[-1].offset_ = change.get("offset", 0.0)
    if isinstance(change.get("images"), int):
        paths = paths[: change["images"]]
    elif "images" in change:
        paths = [paths[i] for i in change["images"]]
    size = change.get("partition_size", 2)
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as raised:
        score_images(detector, paths, out=tmp_path, partition_size=size)
    assert "pass another `out`, or delete the folder" in str(raised.value)
    assert (parts(tmp_path), manifest.read_bytes()) == (before, kept)


# -- resumed ---------------------------------------------------------------------


def test_only_what_is_not_finished_runs_again(
    photos: list[str], detector: Pipeline, tmp_path: Path
) -> None:
    paths, out = [str(tmp_path / f"{i}.png") for i in range(8)], tmp_path / "out"
    for path, photo in zip(paths[:-1], photos, strict=False):
        shutil.copy(photo, path)  # the last one is missing

    def run() -> list[str]:
        """Return the names of the files that were written."""
        before = parts(out)
        # Loaded again: the same detector is recognised by what it learned.
        joblib.dump(detector, tmp_path / "detector")
        loaded = joblib.load(tmp_path / "detector")
        done = score_images(loaded, paths, out=out, partition_size=2)
        after = parts(out)
        new = [name for name in after if after[name] != before.get(name)]
        assert len(new) == done.n_partitions_run
        assert done.n_partitions == len(after) == 4
        assert done.n_unreadable == pandas.read_parquet(out)["verdict"].isna().sum()
        return new

    names = [f"part-{i:08d}.parquet" for i in range(4)]
    assert run() == names
    # What describes a detector may hold addresses, and is not compared.
    manifest = json.loads((out / "_manifest.json").read_text())
    manifest["settings"] = "Pipeline(<function f at 0x7f00>)"
    (out / "_manifest.json").write_text(json.dumps(manifest))
    assert run() == []
    (out / names[1]).unlink()
    assert run() == names[1:2]
    whole = (out / names[2]).read_bytes()
    for damage in (whole[:-9], b"", whole[:9]):
        (out / names[2]).write_bytes(damage)
        assert run() == names[2:3]
    shutil.copy(photos[20], paths[0])  # changed
    assert run() == names[:1]
    shutil.copy(photos[21], paths[7])  # no longer missing
    assert run() == names[3:]
    # A file of another job, though complete, is not of this one.
    other = tmp_path / "other"
    score_images(new_detector(class_name="bolt").fit(None), paths[2:4], out=other)
    shutil.copy(other / names[0], out / names[1])
    assert run() == names[1:2]
    check_rows(out, detector, paths)


def test_prompts_from_the_cache_are_the_same_detector(
    photos: list[str], tmp_path: Path
) -> None:
    """The second run loads no weights before it scores."""
    clip = OpenCLIP("tiny", embedding_cache=str(tmp_path / "cache"))
    members = [("prompts", PromptDetector(clip)), ("others", PromptDetector(clip))]
    fusion = FusionDetector(members, weights=[1, 2])
    for number, n_run in ((1, 4), (2, 0)):
        clear_models()
        detector = make_pipeline(CLIPImageEncoder(clip), fusion).fit(None)
        assert (n_features(clip) is None) == (number == 2)
        out = tmp_path / "out"
        done = score_images(detector, photos[:4], out=out, partition_size=1)
        assert done.n_partitions_run == n_run


def test_killed_at_any_moment(photos: list[str], tmp_path: Path) -> None:
    paths, out = photos * 6, tmp_path / "out"
    detector = new_detector(OpenCLIP("tiny", embedding_cache=None)).fit(None)
    detector.score_samples(paths[:1])  # loads the model, once for all
    rng = random.Random(0)
    after: dict[str, tuple[int, int]] = {}
    for _ in range(10):
        before = after
        run = Forked(lambda: score_images(detector, paths, out=out, partition_size=1))
        n_parts = len(before) + rng.randrange(8)
        run.wait_for(lambda n=n_parts: len([*out.glob("part-*")]) >= n)
        time.sleep(rng.uniform(0, 0.03))
        run.kill()
        run.wait()
        after = parts(out)
        assert {name: after[name] for name in before} == before
        for name in after:
            assert parquet.ParquetFile(out / name).read().num_rows == 1
    assert 0 < len(after) < len(paths)
    # As a kill in the middle of writing leaves it.
    job = json.loads((out / "_manifest.json").read_text())["job"]
    (out / f".clipad-{job[:20]}-left").touch()
    done = score_images(detector, paths, out=out, partition_size=1)
    assert done.n_partitions_run == len(paths) - len(after)
    assert {name: parts(out)[name] for name in after} == after
    check_rows(out, detector, paths)


# -- on Dask ---------------------------------------------------------------------


def test_on_workers(
    client: Any, detector: Pipeline, photos: list[str], tmp_path: Path
) -> None:
    done = score_images(detector, photos, out=tmp_path, client=client, partition_size=5)
    assert (done.n_images, done.n_partitions, done.n_partitions_run) == (24, 5, 5)
    assert sorted(os.listdir(tmp_path)) == [
        "_manifest.json",
        *(f"part-{i:08d}.parquet" for i in range(5)),
    ]
    check_rows(tmp_path, detector, photos)
    before = parts(tmp_path)
    # Finished on workers is finished here, and the other way round.
    for on in (client, None):
        done = score_images(detector, photos, out=tmp_path, client=on, partition_size=5)
        assert done.n_partitions_run == 0
    assert parts(tmp_path) == before


def test_threads_of_a_worker_share_the_detector(
    detector: Pipeline, photos: list[str], tmp_path: Path
) -> None:
    paths = photos * 4
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=4, dashboard_address=":0"
    ) as client:
        done = score_images(detector, paths, out=tmp_path, client=client)
        assert done.n_partitions == 1
        out = tmp_path / "small"
        score_images(detector, paths, out=out, client=client, partition_size=3)
    check_rows(out, detector, paths)


def test_weights_and_settings_that_workers_refuse(
    client: Any, detector: Pipeline, photos: list[str], tmp_path: Path
) -> None:
    elsewhere = new_detector().fit(None)
    elsewhere[0].clip = OpenCLIP("ViT-B-32", str(tmp_path / "gone.pt"))
    with pytest.raises(OSError, match="The weights of 'ViT-B-32"):
        score_images(elsewhere, photos, out=tmp_path / "a", client=client)
    assert not (tmp_path / "a").exists()


class WaitsForPipes(distributed.WorkerPlugin):
    """Makes a worker wait for slow.png, as if it came from a slow server."""

    def setup(self, worker: Any) -> None:
        from clipad_sklearn import _decoding

        read = _decoding.read_bytes

        def waiting(path: Any) -> bytes:
            pipe = Path(path).with_name("pipe")
            named = Path(path).name == "slow.png"
            return pipe.read_bytes() if named and pipe.exists() else read(path)

        _decoding.read_bytes = waiting


@pytest.fixture
def slow(photos: list[str], client: Any, tmp_path: Path) -> tuple[Path, bytes]:
    """The eighth of nine photos, and its content, which workers read from a pipe."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs named pipes and /proc")
    client.register_plugin(WaitsForPipes(), name="waits-for-pipes")
    shutil.copy(photos[7], tmp_path / "slow.png")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "slow.png", Path(photos[7]).read_bytes()


def reader_of(photo: Path, client: Any) -> tuple[int, int]:
    """Wait until a worker reads the photo; return its process, and the other end."""
    pipe = photo.with_name("pipe")
    writer = os.open(pipe, os.O_WRONLY)
    for process in client.run(os.getpid).values():
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(link) == str(pipe):
                    return process, writer
    os.close(writer)
    raise AssertionError("no worker reads the pipe")


def kill_worker(process: int) -> None:
    """Kill a worker and wait until it is gone, and no longer holds the pipe."""
    os.kill(process, signal.SIGKILL)
    while os.path.exists(f"/proc/{process}"):
        time.sleep(0.01)


def test_a_killed_worker_loses_nothing(
    client: Any, detector: Pipeline, photos: list[str], slow: Any, tmp_path: Path
) -> None:
    pipe, content = slow
    paths, out = [*photos[:7], str(pipe), *photos[8:]], tmp_path / "out"

    def kill() -> None:
        process, writer = reader_of(pipe, client)
        kill_worker(process)
        os.close(writer)
        # Another worker reads it in its stead.
        pipe.with_name("pipe").write_bytes(content)

    killer = threading.Thread(target=kill)
    killer.start()
    done = score_images(detector, paths, out=out, client=client, partition_size=2)
    killer.join()
    assert (done.n_unreadable, done.n_partitions) == (0, 12)
    check_rows(out, detector, paths)


@pytest.mark.filterwarnings("ignore:The Dask cluster has no worker left")
def test_a_photo_that_kills_workers_costs_its_own_row(
    client: Any, detector: Pipeline, photos: list[str], slow: Any, tmp_path: Path
) -> None:
    photo, _ = slow
    paths, out = [*photos[:7], str(photo), *photos[8:]], tmp_path / "out"

    def allow(failures: int) -> None:
        client.run_on_scheduler(
            lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", failures)
        )

    def kill() -> None:
        # The partition, and then the photo alone.
        for _ in range(2):
            process, writer = reader_of(photo, client)
            kill_worker(process)
            os.close(writer)

    allow(0)
    killer = threading.Thread(target=kill)
    killer.start()
    done = score_images(detector, paths, out=out, client=client, partition_size=2)
    killer.join()
    allow(3)
    assert done.n_unreadable == 1
    # A worker may have finished another partition just before it was killed.
    assert done.n_partitions_run in (11, 12)
    rows = pandas.read_parquet(out)
    assert list(rows["path"]) == paths
    assert "a worker died of it" in rows["error"][7]
    assert rows["verdict"].drop(7).notna().all()
    assert rows["verdict"].isna()[7]


def test_a_killed_client_goes_on(
    client: Any,
    detector: Pipeline,
    photos: list[str],
    saved: list[str],
    tmp_path: Path,
) -> None:
    paths, out = photos * 10, tmp_path / "out"
    Path(saved[1]).write_text(json.dumps(paths))
    process = start(*saved, out, 2, client.scheduler.address)
    wait_for_parts(out, 3)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = parts(out)
    assert len(before) < 120
    done = score_images(detector, paths, out=out, client=client, partition_size=2)
    assert 0 < done.n_partitions_run <= 120 - len(before)
    after = parts(out)
    assert {name: after[name] for name in before} == before
    check_rows(out, detector, paths)


def test_what_outlives_its_client_spoils_no_other_job(
    client: Any, photos: list[str], saved: list[str], slow: Any, tmp_path: Path
) -> None:
    pipe, content = slow
    out = tmp_path / "out"
    Path(saved[1]).write_text(json.dumps([str(pipe), *photos]))
    process = start(*saved, out, 1, client.scheduler.address)
    _, writer = reader_of(pipe, client)
    process.kill()
    process.wait()
    shutil.rmtree(out)
    other = new_detector(class_name="bolt").fit(None)
    score_images(other, photos, out=out, partition_size=1)
    before = parts(out)
    os.write(writer, content)
    os.close(writer)
    # The one thread of each worker is free again once this is done.
    for worker in client.nthreads():
        client.submit(os.getpid, workers=[worker], pure=False).result()
    assert parts(out) == before
    check_rows(out, other, photos)


def test_a_folder_that_workers_do_not_see(
    client: Any, detector: Pipeline, photos: list[str], slow: Any, tmp_path: Path
) -> None:
    pipe, content = slow
    out = tmp_path / "out"

    def take_away() -> None:
        _, writer = reader_of(pipe, client)
        out.rename(tmp_path / "gone")
        os.write(writer, content)
        os.close(writer)

    taker = threading.Thread(target=take_away)
    taker.start()
    with pytest.raises(OSError, match=r"_manifest.json is not there on .* share"):
        score_images(detector, [str(pipe)], out=out, client=client)
    taker.join()
    assert not out.exists()


def test_grid_search_on_dask(client: Any) -> None:
    data = make_defect_images(12, size=48, random_state=0)
    grid = {"promptdetector__prompts": ["clip-ac", "winclip"]}
    search = GridSearchCV(new_detector(), grid, cv=ZeroShotSplit())
    here = search.fit(data.images, data.target).cv_results_["mean_test_score"]
    with joblib.parallel_config("dask"):
        search.fit(data.images, data.target)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], here, atol=1e-6)


# -- the command -----------------------------------------------------------------


def test_command(
    client: Any,
    detector: Pipeline,
    photos: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.png").touch()
    out, bad = tmp_path / "scores", str(tmp_path / "empty.png")
    options = ["--clip", "tiny", "--method", "prompt", "--out", str(out)]
    options += ["--dask", client.scheduler.address]
    assert main(["score", *photos, *options]) == 0
    shown, said = capsys.readouterr()
    assert "24 scored, " in shown
    assert f"wrote {out}" in shown
    assert "verdicts are uncalibrated" in said
    check_rows(out, detector, photos)
    before = parts(out)
    assert main(["score", *photos, *options]) == 0
    assert "1 of 1 partitions were already there" in capsys.readouterr().err
    assert parts(out) == before
    assert main(["score", *photos, bad, *options]) == 2
    said = capsys.readouterr().err
    assert "another list of images (24 there, 25 now)" in said
    assert "else pass another --out, or delete" in said
    options[-3] = str(tmp_path / "more")
    assert main(["score", *photos, bad, *options, "--threshold", "1"]) == 1
    shown, said = capsys.readouterr()
    assert "1 unreadable" in shown
    assert "uncalibrated" not in said
    rows = pandas.read_parquet(tmp_path / "more")
    assert set(rows["threshold"].dropna()) == {1.0}
    assert rows["error"].iloc[-1] == "the file is empty"
    assert f"not read: {bad}: the file is empty\n" in said


def test_command_on_this_machine(
    photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    # One worker process, however many cores there are.
    monkeypatch.setattr("distributed.deploy.local.CPU_COUNT", 1)
    if sys.version_info >= (3, 11):  # what lies among the photos is not run by it
        (tmp_path / "photos").mkdir()
        monkeypatch.chdir(tmp_path / "photos")
        for name in ("struct", "pickle", "signal"):
            planted = f"open({str(tmp_path / 'planted')!r}, 'w')\nraise ImportError"
            Path(f"{name}.py").write_text(planted)
    out = tmp_path / "scores"
    options = ["--clip", "tiny", "--method", "prompt", "--dask", "local"]
    assert main(["score", photos[0], *options, "--out", str(out)]) == 0
    assert "1 scored" in capsys.readouterr().out
    assert len(pandas.read_parquet(out)) == 1
    assert not (tmp_path / "planted").exists()
    assert "PYTHONSAFEPATH" not in os.environ
    assert not list(Path(tempfile.gettempdir()).iterdir())  # nothing is left


def test_modules_among_the_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Python 3.10 no worker is started beside them."""
    monkeypatch.chdir(tmp_path)
    assert score_command._modules_here() == []
    for name in ("struct.py", "a.png", "json/__init__.py", "folder/1.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert score_command._modules_here() == ["json", "struct.py"]
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    with (
        pytest.raises(UsageError, match=r"Python 3\.10.*holds json, struct\.py"),
        score_command._environment_of_workers(),
    ):
        pass


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk(
    number: int,
    detector: Pipeline,
    photos: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the file, which is absent then."""
    n_synced = 0

    def full(_: int) -> None:
        nonlocal n_synced
        n_synced += 1
        if n_synced == number:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    name = ["_manifest.json", "part-00000000.parquet"][number - 1]
    with pytest.raises(OSError, match=f"No space left on device: .*{name}"):
        score_images(detector, photos, out=tmp_path / "scores")
    assert not (tmp_path / "scores" / name).exists()


@pytest.mark.parametrize("kind", ["link", "dangling"])
def test_parts_are_not_written_through_links(
    kind: str, detector: Pipeline, photos: list[str], tmp_path: Path
) -> None:
    out, other = tmp_path / "scores", tmp_path / "other"
    score_images(detector, photos, out=out, partition_size=12)
    if kind == "link":
        other.write_text("somebody's own")
    part = out / "part-00000001.parquet"
    part.unlink()
    part.symlink_to(other)
    score_images(detector, photos, out=out, partition_size=12)
    assert part.is_file()
    assert not part.is_symlink()
    assert other.exists() == (kind == "link")
    check_rows(out, detector, photos)


def test_a_manifest_that_is_no_file(
    detector: Pipeline, photos: list[str], tmp_path: Path
) -> None:
    """A pipe would be waited for, for ever."""
    for kind in (os.mkfifo, os.mkdir):
        out = tmp_path / kind.__name__
        out.mkdir()
        kind(out / "_manifest.json")
        with pytest.raises(ValueError, match=r"_manifest\.json is damaged"):
            score_images(detector, photos, out=out)


def test_options_in_messages() -> None:
    error = ValueError(
        "in partition_size/`out`: another `partition_size`, another `out`"
    )
    expected = "in partition_size/--out: another --partition-size, another --out"
    assert score_command._with_options(error) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dask needs --out FOLDER"),
        (["--out", "scores.csv"], "--dask needs --out FOLDER"),
        (["--out", "o", "--contamination", "0.1"], "combined with --contamination"),
        (["--out", "o", "--report", "r.html"], "combined with --report"),
        (["--out", "o", "--method", "sdp", "--maps", "m"], "combined with --maps"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["score", "a.png", "--dask", "local", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_the_address_of_something_else(
    photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It answers, and the client of Dask would wait for the rest of it for ever."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(score_command, "_CONNECT_SECONDS", 2)
    address = f"tcp://127.0.0.1:{server.server_address[1]}"
    out = str(tmp_path / "out")
    assert main(["score", photos[0], "--dask", address, "--out", out]) == 2
    server.shutdown()
    expected = f"--dask {address}: no scheduler of Dask has answered there for 2 sec"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere", "nowhere"),
        ("abacus://127.0.0.1:1", "abacus"),
        ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("LOCAL", "expected local, or the address of a running scheduler"),
        ("inproc://x", "expected local, or the address of a running scheduler"),
        ("tcp://\udce4:1", "expected local, or the address of a running scheduler"),
    ],
)
def test_no_scheduler_there(
    address: str, message: str, photos: list[str], tmp_path: Path, capsys: Any
) -> None:
    import dask

    out = tmp_path / "out"
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(["score", photos[0], "--dask", address, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "clipad: error: --dask " in error
    assert "Traceback" not in error
    assert not out.exists()
