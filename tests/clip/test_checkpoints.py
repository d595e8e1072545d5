"""Checkpoints and folders of strangers, of others, and damaged ones."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.pipeline import make_pipeline
from sklearn.svm import OneClassSVM

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    PromptDetector,
    SDPDetector,
    WinCLIPDetector,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.settings import check_clip
from clipad_sklearn._clip.source import TINY
from clipad_sklearn._score_rows import score_readable


class _Payload:
    """Touches a file where it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> Any:
        return Path.touch, (self.flag,)


def _plain(flag: Path) -> bytes:
    return pickle.dumps({"state_dict": _Payload(flag)}, 2)


def _second(flag: Path) -> bytes:
    """Something harmless first, as the weights of a model."""
    return pickle.dumps({"epoch": 3, "optimizer": [1.0], "later": _Payload(flag)}, 2)


def _with_type_error(flag: Path) -> bytes:
    """A dictionary built with the state None is a TypeError to a careful reader."""
    start = b"\x80\x02ccollections\nOrderedDict\n)RNb0"
    return start + pickle.dumps(_Payload(flag), 2)[2:]


def _archive(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def _bare(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize("trust", [None, "1"])
@pytest.mark.parametrize("write", [_archive, _bare])
@pytest.mark.parametrize("content", [_plain, _second, _with_type_error])
def test_no_checkpoint_runs_code(
    content: Callable[[Path], bytes],
    write: Callable[[Path, bytes], None],
    trust: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    if trust is not None:
        monkeypatch.setenv(name, trust)
    flag = tmp_path / "flag"
    folder = tmp_path / "clip"
    folder.mkdir()
    for file in ("open_clip_config.json", "bpe_merges.txt.gz"):
        shutil.copy(Path(TINY, file), folder)
    checkpoint = folder / "open_clip_pytorch_model.bin"
    write(checkpoint, content(flag))
    (tmp_path / "file.pt").symlink_to(checkpoint)
    clips = [OpenCLIP(str(folder))]
    if content is _with_type_error:
        clips.append(OpenCLIP("ViT-S-32-alt", str(tmp_path / "file.pt")))
    for clip in clips:
        with pytest.raises(ValueError, match="cannot be read as"):
            load(clip)
    assert not flag.exists()
    assert os.environ.get(name) == trust
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    # The payload is alive: whoever unpickles it gets the file.
    pickle.loads(_plain(flag))
    assert flag.exists()


class TestPlanted:
    """A folder in the working directory that has the name of something else."""

    @pytest.fixture
    def planted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        return tmp_path

    @pytest.mark.parametrize(
        ("folder", "clip"),
        [
            ("ViT-B-16-plus-240", OpenCLIP()),
            ("ViT-B-32", OpenCLIP("ViT-B-32", "laion2b_s34b_b79k")),
            ("ViT-B/32", OpenCLIP("ViT-B/32", "laion2b_s34b_b79k")),
            ("hf-hub:acme/clip", OpenCLIP("hf-hub:acme/clip")),
        ],
    )
    def test_is_not_used(self, planted: Path, folder: str, clip: OpenCLIP) -> None:
        shutil.copytree(TINY, planted / folder)
        empty = clip.set_params(cache_dir=str(planted / "hub"))
        with pytest.raises(OSError, match="were not found"):
            load(empty)
        assert load(OpenCLIP(f"./{folder}")).embedding_width == 128

    def test_a_short_string_says_so(self, planted: Path) -> None:
        shutil.copytree(TINY, planted / "RN50" / "openai")
        with pytest.warns(UserWarning, match=r"Write '\./RN50/openai' to say so"):
            assert load(check_clip("RN50/openai")).embedding_width == 128
        check_clip("./RN50/openai")
        with pytest.raises(ValueError, match=r"'\./RN50' for the folder"):
            check_clip("RN50")

    def test_a_tag_wins_over_a_file(self, planted: Path) -> None:
        shutil.copy(Path(TINY, "open_clip_model.safetensors"), planted / "openai")
        clip = OpenCLIP("RN50-quickgelu", "openai", cache_dir=str(planted / "hub"))
        with pytest.raises(OSError, match="were not found"):
            load(clip)

    def test_a_tokenizer(self, planted: Path) -> None:
        pytest.importorskip("transformers")
        (planted / "timm" / "ViT-B-16-SigLIP").mkdir(parents=True)
        text_cfg = {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
        from clipad_sklearn._clip.loading import tokenizer
        from clipad_sklearn._clip.source import Source

        source = Source("ViT-B-16-SigLIP", "random", None)
        with pytest.raises(ValueError, match="would be read instead"):
            tokenizer(source, text_cfg, is_plain=False)

    def test_a_folder_of_no_other_name(self, planted: Path) -> None:
        shutil.copytree(TINY, planted / "my clip")
        assert load(check_clip("my clip")).embedding_width == 128


@pytest.fixture(scope="module")
def small_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    state = open_clip.create_model("ViT-S-32-alt").state_dict()
    state = {name: value.contiguous() for name, value in state.items()}
    save_file(state, folder / "open_clip_model.safetensors")
    torch.save(state, folder / "weights.pt")
    return folder


class TestConfigBeside:
    """A checkpoint file that lies in a folder with a config."""

    def _write(self, folder: Path, **model: Any) -> None:
        config = {
            "model_cfg": open_clip.get_model_config("ViT-S-32-alt") | model,
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(config))

    @pytest.mark.parametrize("name", ["open_clip_model.safetensors", "weights.pt"])
    def test_is_used(
        self, small_checkpoints: Path, name: str, photos: list[np.ndarray]
    ) -> None:
        self._write(small_checkpoints)
        file = OpenCLIP("ViT-S-32-alt", str(small_checkpoints / name))
        expected = OpenCLIP(str(small_checkpoints)).encode_image(photos[:2])
        np.testing.assert_allclose(file.encode_image(photos[:2]), expected, atol=1e-6)
        assert load(file).preprocess_cfg["std"][0] == 0.25

    @pytest.mark.parametrize("model", [{"quick_gelu": True}, {"embed_dim": 512}])
    def test_of_another_model(
        self, small_checkpoints: Path, model: dict[str, Any]
    ) -> None:
        self._write(small_checkpoints, **model)
        with pytest.raises(ValueError, match="describes another model than 'ViT-S"):
            load(OpenCLIP("ViT-S-32-alt", str(small_checkpoints / "weights.pt")))

    def test_damaged(self, small_checkpoints: Path) -> None:
        (small_checkpoints / "open_clip_config.json").write_text("[")
        with pytest.raises(ValueError, match="not a valid open_clip config"):
            load(OpenCLIP("ViT-S-32-alt", str(small_checkpoints / "weights.pt")))


class TestOddNeighbours:
    """What else may lie in a folder of weights."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        shutil.copytree(TINY, tmp_path / "clip")
        return tmp_path / "clip"

    def test_they_do_no_harm(self, folder: Path) -> None:
        (folder / "README.md").symlink_to("../blobs/gone")
        (folder / "loop").symlink_to("loop")
        (folder / "sub").mkdir(mode=0)
        os.mkfifo(folder / "pipe")
        (folder / "notes \udcff.txt").write_bytes(b"")
        assert load(OpenCLIP(str(folder))).embedding_width == 128

    @pytest.mark.parametrize("config", ["[" * 100_000, "[]", "", "\ufeff{}", "null"])
    def test_a_config_that_is_none(self, config: str, folder: Path) -> None:
        (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
        with pytest.raises(ValueError, match="not a valid open_clip config"):
            load(OpenCLIP(str(folder)))

    def test_home(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(folder.parent))
        assert PromptDetector("~/clip").fit(None).n_features_in_ == 128
        file = "~/clip/open_clip_model.safetensors"
        with pytest.raises(ValueError, match="another model than 'ViT-S-32'"):
            load(OpenCLIP("ViT-S-32", file))


def _set_to_zero(folder: Path, name: str) -> None:
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    for key in weights:
        if key.startswith(name):
            weights[key].zero_()
    save_file(weights, path)


class TestDamaged:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        shutil.copytree(TINY, tmp_path / "clip")
        return tmp_path / "clip"

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", ["visual.proj", "text_projection"])
    def test_not_finite(self, folder: Path, value: float, name: str) -> None:
        path = folder / "open_clip_model.safetensors"
        weights = load_file(path)
        weights[name][3, 5] = value
        save_file(weights, path)
        with pytest.raises(ValueError, match=f"damaged: {name} holds values that are"):
            load(OpenCLIP(str(folder)))

    @pytest.mark.parametrize("method", ["prompt", "windows", "maps"])
    @pytest.mark.parametrize("name", ["visual.proj", "visual.ln_post"])
    def test_photos_without_direction(
        self, folder: Path, name: str, method: str, photos: list[np.ndarray]
    ) -> None:
        _set_to_zero(folder, name)
        clip = OpenCLIP(str(folder), device="cpu")
        assert np.isnan(clip.encode_image(photos[:2])).all()
        detector: Any = {
            "prompt": make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)),
            "windows": WinCLIPDetector(clip),
            "maps": SDPDetector(clip),
        }[method].fit(None)
        if method != "prompt":  # never 0.000, which looks like a score
            with contextlib.suppress(ValueError):
                assert np.isnan(detector.score_samples(photos[:2])).all()
            return
        scores, _, failures = score_readable(detector, photos[:2])
        assert np.isnan(scores).all()
        assert [index for index, _, _ in failures] == [0, 1]
        assert "weights, or mean and std" in failures[0][2]
        assert "use precision" not in failures[0][2]

    @pytest.mark.parametrize("name", ["text_projection", "ln_final"])
    def test_texts_without_direction(self, folder: Path, name: str) -> None:
        _set_to_zero(folder, name)
        message = "^The embedding of 'bolt' is not a number: the model's weights, or"
        with pytest.raises(ValueError, match=message):
            OpenCLIP(str(folder), device="cpu").encode_text(["bolt"])

    def test_overflow_at_half_precision(
        self, folder: Path, photos: list[np.ndarray]
    ) -> None:
        path = folder / "open_clip_model.safetensors"
        weights = load_file(path)
        weights["text_projection"] *= 1e5
        weights["visual.proj"] *= 1e5
        save_file(weights, path)
        clip = OpenCLIP(str(folder), device="cpu", precision="fp16")
        with pytest.raises(ValueError, match="overflows at this precision, use prec"):
            clip.encode_text(["bolt"])
        outliers = OneClassSVM().fit(np.eye(128))
        detector = make_pipeline(CLIPImageEncoder(clip), outliers)
        (failure,) = score_readable(detector, photos[:1])[2]
        assert "overflows at this precision, use precision='fp32'" in failure[2]

    @pytest.mark.parametrize("content", [b"", b"\0" * 100, b"no checkpoint"])
    @pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
    def test_no_weights(self, tmp_path: Path, content: bytes, name: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        message = "is empty" if not content else "truncated, damaged, not a checkpoint"
        with pytest.raises(ValueError, match=message):
            load(OpenCLIP("ViT-S-32-alt", str(path)))

    def test_nothing_in_it(self, tmp_path: Path) -> None:
        torch.save({}, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match="not a checkpoint"):
            load(OpenCLIP("ViT-S-32-alt", str(tmp_path / "weights.pt")))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_archive(
    tmp_path: Path, clip_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program is refused, and the advice given keeps its weights."""
    folder = clip_folder()
    stock = open_clip.create_model(f"local-dir:{folder}")

    class Weights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in stock.state_dict().items():
                parts, module = name.split("."), self
                for part in parts[:-1]:
                    if not hasattr(module, part):
                        module.add_module(part, torch.nn.Module())
                    module = getattr(module, part)
                module.register_buffer(parts[-1], value)
            for name in ("input_resolution", "context_length", "vocab_size"):
                self.register_buffer(name, torch.tensor(7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    (folder / "open_clip_model.safetensors").rename(tmp_path / "expected.safetensors")
    archive = tmp_path / "published.pt"
    torch.jit.save(torch.jit.script(Weights()), str(archive))
    with pytest.raises(ValueError, match="is a TorchScript archive, a prog") as error:
        load(OpenCLIP("ViT-S-32-alt", str(archive)))
    advice = str(error.value).split("weights:\n")[1].split("\nand pass")[0]
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(advice))
    kept = load_file(tmp_path / "weights.safetensors")
    expected = load_file(tmp_path / "expected.safetensors")
    assert kept.keys() == expected.keys()
    shutil.copy(archive, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="is a TorchScript archive"):
        load(OpenCLIP(str(folder)))


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
_WEIGHTS = "open_clip_model.safetensors"


class TestInsteadOfFiles:
    """What lies there is not what its name says."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        shutil.copytree(TINY, tmp_path / "clip")
        return tmp_path / "clip"

    @pytest.mark.parametrize("name", [_WEIGHTS, "pytorch_model.bin", "model.pth"])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (_POINTER, "%s' is a pointer of Git LFS, .* 'git lfs pull'"),
            (b"\n<!DOCTYPE html><html>", "%s' is a web page, .* download it again"),
            (b"\x89PNG\r\n", "%s, are truncated, damaged or no weights"),
            (pickle.dumps({"a": _POINTER}), "%s, are truncated, damaged or no weights"),
        ],
    )
    def test_weights(
        self, folder: Path, name: str, content: bytes, message: str
    ) -> None:
        (folder / _WEIGHTS).unlink()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=message % name) as error:
            load(OpenCLIP(str(folder)))
        assert "weights_only" not in str(error.value)
        if message.startswith("%s' is"):
            (folder / "open_clip_config.json").unlink()
            with pytest.raises(ValueError, match=message % name):
                load(OpenCLIP("ViT-S-32-alt", str(folder / name)))

    def test_no_advice_to_read_unsafely(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pt"
        for content in (b"\x89PNG\r\n", b"text", pickle.dumps({"a": load})):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="cannot be read as") as error:
                load(OpenCLIP("ViT-S-32-alt", str(path)))
            assert "weights_only" not in str(error.value)

    @pytest.mark.parametrize("name", ["open_clip_config.json", "bpe_merges.txt.gz"])
    def test_other_files(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(_POINTER)
        with pytest.raises(ValueError, match=f"{name}' is a pointer of Git LFS"):
            load(OpenCLIP(str(folder)))

    def test_a_file_that_is_not_needed(self, folder: Path) -> None:
        (folder / "pytorch_model.bin").write_bytes(_POINTER)
        assert load(OpenCLIP(str(folder))).embedding_width == 128
        whole = (folder / _WEIGHTS).read_bytes()
        (folder / _WEIGHTS).write_bytes(whole[:9000])
        with pytest.raises(ValueError, match=f"{_WEIGHTS}, are truncated"):
            load(OpenCLIP(str(folder)))


class TestFaultsOfTheConfig:
    """The error names the config, not the weights or the tokenizer."""

    def _load(self, folder: Path, tower: str = "", **settings: Any) -> None:
        shutil.copytree(TINY, folder, dirs_exist_ok=True)
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        model = config["model_cfg"]
        (model[tower] if tower else config).update(settings)
        path.write_text(json.dumps(config))
        load(OpenCLIP(str(folder)))

    @pytest.mark.parametrize(
        "settings",
        [{"layers": "x"}, {"patch_size": 0}, {"width": "64"}, {"unheard_of": 1}],
    )
    def test_no_model_can_be_built(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        message = r"open_clip_config\.json describes no model that can be built here \("
        with pytest.raises(ValueError, match=message):
            self._load(tmp_path, "vision_cfg", **settings)

    @pytest.mark.parametrize(
        ("tower", "name", "value"),
        [
            ("vision_cfg", "width", 10**12),
            ("vision_cfg", "image_size", 10**8),
            ("text_cfg", "vocab_size", 10**12),
        ],
    )
    def test_more_memory_than_there_is(
        self, tmp_path: Path, tower: str, name: str, value: int
    ) -> None:
        with pytest.raises(ValueError, match="needs more memory than there is"):
            self._load(tmp_path, tower, **{name: value})

    @pytest.mark.parametrize("layers", [2000, 1e30, [1, 2000, 1, 1]])
    @pytest.mark.parametrize("tower", ["vision_cfg", "text_cfg"])
    def test_layers_without_an_end(
        self, tmp_path: Path, tower: str, layers: Any
    ) -> None:
        with pytest.raises(ValueError, match="expected at most 1000 layers"):
            self._load(tmp_path, tower, layers=layers)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("tokenizer_kwargs", {"bpe_path": 7}),
            ("hf_model_name", ["x"]),
            ("hf_tokenizer_name", 7),
        ],
    )
    def test_names_that_are_none(self, tmp_path: Path, name: str, value: Any) -> None:
        inner = "bpe_path" if name == "tokenizer_kwargs" else name
        message = rf"not a valid open_clip config \(TypeError: {inner} is a string\)"
        with pytest.raises(ValueError, match=message):
            self._load(tmp_path, "text_cfg", **{name: value})

    @pytest.mark.parametrize("settings", [{"clean": "x"}, {"unheard_of": 1}])
    def test_no_tokenizer(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="tokenizer_kwargs, or the merges they"):
            self._load(tmp_path, "text_cfg", tokenizer_kwargs=settings)

    def test_no_merges(self, tmp_path: Path) -> None:
        message = "names them as bpe_path='gone.gz', but there is no file"
        with pytest.raises(OSError, match=message):
            self._load(tmp_path, "text_cfg", tokenizer_kwargs={"bpe_path": "gone.gz"})

    @pytest.mark.parametrize("name", ["hf-hub:acme/x", "hf_hub:acme/x", "local-dir:/x"])
    def test_a_tower_from_elsewhere(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_network(*_: Any, **__: Any) -> None:
            raise AssertionError("a connection is opened")

        monkeypatch.setattr("socket.socket.connect", no_network)
        message = f"timm_model_name='{name}': expected a model of timm"
        with pytest.raises(ValueError, match=message):
            self._load(tmp_path, "vision_cfg", timm_model_name=name)

    @pytest.mark.parametrize("value", [[1], "x", 7])
    def test_preprocessing_of_another_kind(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(ValueError, match="preprocess_cfg is an object"):
            self._load(tmp_path, preprocess_cfg=value)

    @pytest.mark.parametrize("std", [[-1, -1, -1], [0.2, -0.2, 0.2], -1])
    def test_negative_std(self, tmp_path: Path, std: Any) -> None:
        with pytest.raises(ValueError, match=r"not valid \(std is not above 0\)"):
            self._load(tmp_path, preprocess_cfg={"std": std})

    def test_one_number_for_all_colours(
        self, tmp_path: Path, photos: list[np.ndarray]
    ) -> None:
        self._load(tmp_path / "one", preprocess_cfg={"mean": 0.5, "std": 0.25})
        settings = {"mean": [0.5] * 3, "std": [0.25] * 3}
        self._load(tmp_path / "three", preprocess_cfg=settings)
        one, three = (
            OpenCLIP(str(tmp_path / name), embedding_cache=None).encode_image(
                photos[:2]
            )
            for name in ("one", "three")
        )
        np.testing.assert_array_equal(one, three)
        assert PromptDetector(str(tmp_path / "one")).fit(None).clip_fingerprint_

    def test_not_a_file_of_text(self, tmp_path: Path) -> None:
        shutil.copytree(TINY, tmp_path / "clip")
        path = tmp_path / "clip" / "open_clip_config.json"
        path.write_bytes(path.read_text().encode("utf-16") * 9)
        with pytest.raises(ValueError, match="not a valid open_clip config") as error:
            load(OpenCLIP(str(path.parent)))
        assert len(str(error.value)) < 400
        path.unlink()
        path.mkdir()
        with pytest.raises(ValueError, match="json cannot be read: is a directory"):
            load(OpenCLIP(str(path.parent)))
