"""Wrong settings and wrong weights, each with its error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from clipad_sklearn import (
    OpenCLIP,
    SDPPlusDetector,
    WeightsNotFound,
)
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.settings import check_clip
from clipad_sklearn._clip.source import TINY


class TestErrors:
    @pytest.mark.parametrize(
        ("clip", "kind", "message"),
        [
            (OpenCLIP("ViT-B-23"), ValueError, "Did you mean 'ViT-B-32'"),
            (OpenCLIP("acme", "clip"), ValueError, "write 'hf-hub:acme/clip'"),
            (OpenCLIP("a", "b/c.pt"), ValueError, "in 'a/b/c.pt': neither a path"),
            (OpenCLIP("ViT-B-32", "no/a.pt"), WeightsNotFound, "'ViT-B-32/no/a.pt'"),
            (OpenCLIP("ViT-B-32", "opnai"), ValueError, "open_clip knows openai"),
            (OpenCLIP("ViT-B-32", None), ValueError, "needs `pretrained`"),
            (OpenCLIP("ViT-B-32", "openai"), ValueError, "'ViT-B-32-quickgelu'"),
            (OpenCLIP("ViT-B-32", "no/such.pt"), WeightsNotFound, "no such checkpoint"),
            (OpenCLIP("tiny", batch_size=0), ValueError, "batch_size=0"),
            (OpenCLIP("tiny", batch_size=True), ValueError, "batch_size=True"),
            (OpenCLIP("tiny", num_workers=True), ValueError, "num_workers=True"),
            (OpenCLIP("tiny", num_workers=0), ValueError, "num_workers=0"),
            (OpenCLIP("tiny", resize="stretch"), ValueError, "resize='stretch'"),
            (OpenCLIP("tiny", precision="int8"), ValueError, "precision='int8'"),
            (OpenCLIP("tiny", device="cuda:99"), ValueError, "cannot be used here"),
        ],
    )
    def test_settings(
        self, clip: OpenCLIP, kind: type[Exception], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            clip.encode_text(["a"])

    @pytest.mark.parametrize(
        ("clip", "kind", "message"),
        [
            ("nothing", ValueError, "not of the form 'model/pretrained'"),
            ("/no/such/folder", ValueError, "'/no/such/folder': no such file"),
            ("~/clips/vit", ValueError, "'~/clips/vit': no such file"),
            ("./clips", ValueError, "'./clips': no such file"),
            ("ViT-B-32", ValueError, "'ViT-B-32/TAG'"),
            (3, TypeError, "expected an OpenCLIP"),
        ],
    )
    def test_short_string(self, clip: Any, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            check_clip(clip)

    @pytest.mark.parametrize(
        ("texts", "kind", "message"),
        [
            ("one string", TypeError, "Wrap it in a list"),
            ([], ValueError, "0 texts"),
            (["a", 3], TypeError, "got int"),
        ],
    )
    def test_texts(self, texts: Any, kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            OpenCLIP("tiny").encode_text(texts)

    @pytest.mark.parametrize("name", ["truncated.safetensors", "truncated.pt"])
    def test_truncated_checkpoint(self, name: str, checkpoint_folder: Path) -> None:
        with pytest.raises(
            ValueError,
            match="truncated, damaged, not a checkpoint, or one of another model",
        ):
            load(OpenCLIP("ViT-S-32-alt", str(checkpoint_folder / name)))

    def test_checkpoint_of_another_model(self, checkpoint_folder: Path) -> None:
        clip = OpenCLIP("ViT-S-16-alt", str(checkpoint_folder / "small.safetensors"))
        with pytest.raises(ValueError, match="does not fit the model 'ViT-S-16-alt'"):
            load(clip)

    @pytest.mark.parametrize(
        ("part", "changes", "message"),
        [
            ("preprocess_cfg", {"interpolation": "foo"}, "preprocess_cfg of .*is not"),
            ("preprocess_cfg", {"std": [0, 1, 1]}, "preprocess_cfg of .*is not valid"),
            ("preprocess_cfg", {"mean": "grey"}, "preprocess_cfg of .*is not valid"),
            ("text_cfg", {"tokenizer_kwargs": [1]}, "tokenizer_kwargs is an object"),
            ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "gone"}}, "gone.*no file"),
            (
                "text_cfg",
                {"tokenizer_kwargs": {"bpe_path": "open_clip_config.json"}},
                "the merges they name, make no tokenizer .*gzip",
            ),
            ("text_cfg", {"layers": 2}, "not fit the model 'open_clip_config.*Unexp"),
            ("text_cfg", {"layers": 5}, "not fit the model 'open_clip_config.*Missing"),
        ],
    )
    def test_folder_with_a_wrong_config(
        self, part: str, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        for name in ("open_clip_model.safetensors", "bpe_merges.txt.gz"):
            (tmp_path / name).symlink_to(Path(TINY, name))
        config = json.loads(Path(TINY, "open_clip_config.json").read_text())
        within = config if part in config else config["model_cfg"]
        within[part] |= changes
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises((ValueError, WeightsNotFound), match=message):
            load(OpenCLIP(str(tmp_path)))

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
    @pytest.mark.parametrize(
        "name",
        ["open_clip_model.safetensors", "open_clip_config.json", "bpe_merges.txt.gz"],
    )
    def test_folder_with_a_pipe(self, name: str, tmp_path: Path) -> None:
        """Whose other end nobody may ever open."""
        folder = shutil.copytree(TINY, tmp_path / "model")
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=f"{name}' is a pipe, not a file"):
            load(OpenCLIP(str(folder)))
        os.mkfifo(tmp_path / "layers")
        with pytest.raises(ValueError, match="layers' is a pipe, not a file"):
            SDPPlusDetector("tiny").load_layers(tmp_path / "layers")

    def test_vocabulary_that_does_not_fit(self, tmp_path: Path) -> None:
        """tiny without its merges file gets open_clip's vocabulary of 49,408."""

        config = json.loads(Path(TINY, "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"].pop("tokenizer_kwargs")
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        weights = Path(TINY, "open_clip_model.safetensors").read_bytes()
        (tmp_path / "open_clip_model.safetensors").write_bytes(weights)
        with pytest.raises(ValueError, match="do not belong together"):
            load(OpenCLIP(str(tmp_path)))

    def test_folders_that_are_no_clip(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsNotFound, match=r"no open_clip_config\.json there"):
            load(OpenCLIP(str(tmp_path)))
        (tmp_path / "open_clip_config.json").write_text("{")
        with pytest.raises(ValueError, match="not a valid open_clip config"):
            load(OpenCLIP(str(tmp_path)))
        config = Path(TINY, "open_clip_config.json").read_text()
        (tmp_path / "open_clip_config.json").write_text(config)
        with pytest.raises(WeightsNotFound, match=r"clip=\"tiny\""):
            load(OpenCLIP(str(tmp_path)))


@pytest.mark.parametrize("device", ["mps", "xpu", "vulkan", "nonsense"])
def test_message_of_a_device_is_short(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    if device == "xpu" and torch.xpu.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=f"^device='{device}' cannot be") as error:
        OpenCLIP("tiny", device=device).encode_text(["a"])
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)
