"""What the command keeps between runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipad_sklearn import OpenCLIP, RandomWordDetector, TiledDetector, clear_models
from clipad_sklearn._cli.detectors import new_detector
from clipad_sklearn._cli.kept import learned_words
from clipad_sklearn._cli.main import main
from clipad_sklearn._cli.methods import Choices
from clipad_sklearn._clip import encoding, kept_model, models
from clipad_sklearn._clip.embedding_cache import FolderCache, open_cache


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and from then on no model can be loaded."""

    def refuse(clip: Any) -> None:
        raise AssertionError("a model was loaded")

    def forbid() -> None:
        clear_models()
        monkeypatch.setattr(encoding, "load", refuse)
        monkeypatch.setattr("clipad_sklearn._cli.kept.load", refuse)

    return forbid


def new_words(clip: OpenCLIP, **params: Any) -> RandomWordDetector:
    return RandomWordDetector(clip, n_pairs=40, random_state=3, **params)


def test_learned_words_are_the_same_when_kept(tmp_path: Path, no_model: Any) -> None:
    clip = OpenCLIP("tiny", embedding_cache=str(tmp_path))
    embeddings = np.random.default_rng(0).normal(size=(5, 1))
    embeddings = embeddings * clip.encode_text(["a photo"])
    expected = new_words(clip).fit().score_samples(embeddings)
    first = learned_words(new_words(clip), clip)
    other = learned_words(new_words(clip, class_name="bolt"), clip)
    no_model()
    second = learned_words(new_words(clip), clip)
    for detector in (first, second):
        np.testing.assert_array_equal(detector.score_samples(embeddings), expected)
    assert (other.score_samples(embeddings) != expected).any()
    for name, value in vars(first.classifier_).items():
        kept = getattr(second.classifier_, name)
        assert type(kept) is type(value), name
        if isinstance(value, list):
            assert len(value) == len(kept)
            value, kept = (
                np.concatenate([np.ravel(v) for v in value]),
                np.concatenate([np.ravel(v) for v in kept]),
            )
        np.testing.assert_array_equal(kept, value)
    assert vars(second).keys() == vars(first).keys()


def test_where_there_may_be_a_gpu(
    photo_files: list[str], tmp_path: Path, no_model: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(kept_model, "_GPU_FILES", (str(tmp_path),))
    clip = OpenCLIP("tiny", embedding_cache=str(tmp_path / "cache"))
    expected = clip.encode_image(photo_files)
    no_model()
    np.testing.assert_array_equal(clip.encode_image(photo_files), expected)
    # What another GPU would choose is not known.
    monkeypatch.setattr(kept_model, "torch_device", lambda clip: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "another")
    with pytest.raises(AssertionError, match="a model was loaded"):
        clip.encode_image(photo_files)


def test_words_of_tiles_are_kept(tmp_path: Path, no_model: Any) -> None:
    clip = OpenCLIP("tiny", embedding_cache=str(tmp_path))
    embeddings = np.random.default_rng(0).normal(size=(5, 256))

    def fitted() -> Any:
        detector = new_detector("random-word", clip, Choices(n_pairs=40), False)
        return TiledDetector(detector, tiles=(1, 2)).fit().detector_[-1]

    first = fitted()
    no_model()  # so that nothing can be learned again
    embeddings = embeddings[:, : first.n_features_in_]
    scores = fitted().score_samples(embeddings)
    np.testing.assert_array_equal(scores, first.score_samples(embeddings))


def test_damaged_words_are_learned_again(tmp_path: Path) -> None:
    clip = OpenCLIP("tiny", embedding_cache=str(tmp_path))
    learned_words(new_words(clip), clip)
    cache = open_cache(str(tmp_path))
    assert isinstance(cache, FolderCache)
    connection = cache._open()
    connection.execute(
        "UPDATE embedding SET value = x'00' WHERE length(value) > 100000"
    )
    connection.commit()
    assert cache.verify()["damaged"] == 1
    learned_words(new_words(clip), clip)
    assert cache.verify()["damaged"] == 0


def test_the_model_is_known_again_after_an_update(
    tmp_path: Path, no_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = OpenCLIP("tiny", embedding_cache=str(tmp_path))
    learned_words(new_words(clip), clip)
    clear_models()
    monkeypatch.setattr(kept_model, "__version__", "another")
    learned_words(new_words(clip), clip)  # the words are kept, the model is loaded
    no_model()
    learned_words(new_words(clip), clip)


def test_a_second_run_imports_no_deep_learning_library(
    photo_files: list[str], tmp_path: Path
) -> None:
    """Importing them would take most of its time."""
    cache = str(tmp_path / "cache")
    arguments = ["score", *photo_files, "--clip", "tiny", "--embedding-cache", cache]
    arguments += ["--method", "prompt", "--out", str(tmp_path / "scores.json")]
    assert main(arguments) == 0
    code = (
        "import sys\n"
        "from clipad_sklearn._cli.main import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'torch', 'open_clip'} & set(sys.modules)\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr


def test_a_second_run_loads_nothing(
    photo_files: list[str], tmp_path: Path, no_model: Any, capsys: Any
) -> None:
    """With the default method, and the scores are those of the first."""
    arguments = ["score", os.path.dirname(photo_files[0]), "--clip", "tiny"]
    cache = ["--embedding-cache", str(tmp_path / "cache")]
    outs = [str(tmp_path / f"{n}.json") for n in range(2)]
    assert main([*arguments, *cache, "--method", "prompt", "--out", outs[0]]) == 0
    no_model()
    assert main([*arguments, *cache, "--method", "prompt", "--out", outs[1]]) == 0
    first, second = (json.loads(Path(out).read_text())["scores"] for out in outs)
    assert first == second
    # A photo that is not kept needs the model, and so does another model.
    shutil.copy(photo_files[0], tmp_path / "new.png")
    with open(tmp_path / "new.png", "ab") as file:
        file.write(b" ")
    arguments[1] = str(tmp_path / "new.png")
    assert main([*arguments, *cache, "--method", "prompt"]) == 3
    assert "a model was loaded" in capsys.readouterr().err


@pytest.mark.parametrize("same_times", [False, True])
@pytest.mark.parametrize("same_process", [False, True])
def test_weights_that_were_replaced_are_not_taken_for_the_old_ones(
    same_times: bool, same_process: bool, tmp_path: Path, photo_files: list[str]
) -> None:
    """Also where times are set, such as in images of containers."""
    shutil.copytree(models.source_of(OpenCLIP("tiny")).model_name, tmp_path / "model")
    clip = OpenCLIP(
        str(tmp_path / "model"), None, embedding_cache=str(tmp_path / "cache")
    )
    weights = next((tmp_path / "model").glob("*.safetensors"))
    from safetensors.numpy import load_file, save_file

    save_file(state := load_file(weights), weights)
    if same_times:
        os.utime(weights, (1, 1))
    before = clip.encode_image(photo_files)
    if not same_process:
        clear_models()
    name = next(name for name in state if name.startswith("visual"))
    size = weights.stat().st_size
    save_file(state | {name: state[name] * 2}, weights)
    assert weights.stat().st_size == size
    if same_times:
        os.utime(weights, (1, 1))
    after = clip.encode_image(photo_files)
    assert not np.allclose(before, after)


def test_no_cache_writes_nothing(
    photo_files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "of the user"
    monkeypatch.setenv("CLIPAD_CACHE", str(folder))
    arguments = ["score", photo_files[0], "--clip", "tiny", "--method", "prompt"]
    saved = str(tmp_path / "detector.joblib")
    assert main([*arguments, "--no-cache"]) == 0
    assert not folder.exists()
    assert main([*arguments, "--save", saved]) == 0
    assert os.listdir(folder)
    # A detector that is handed on names no folder of this user.
    assert str(folder).encode() not in Path(saved).read_bytes()
    import joblib

    assert joblib.load(saved)[0].clip.embedding_cache == "memory"


def test_folder_of_the_user(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import platformdirs

    from clipad_sklearn._cli.cache import cache_folder

    monkeypatch.delenv("CLIPAD_CACHE")
    assert cache_folder() == platformdirs.user_cache_dir("clipad", appauthor=False)
    monkeypatch.setenv("CLIPAD_CACHE", "nowhere")
    assert main(["cache", "info"]) == 0
    assert "entries: 0" in capsys.readouterr().out
