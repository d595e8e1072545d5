"""CLIPs whose tokenizer or text tower needs the package transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clipad_sklearn import OpenCLIP, PromptDetector
from clipad_sklearn._cli.main import main
from clipad_sklearn._clip.models import load

pytestmark = pytest.mark.usefixtures("on_processor")

TEXTS = ["a photo of a bolt", "scratched", "a photo of a bolt", "", "two  bolts!"]
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
SIGLIP = {
    "image_size": 224,
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_pool": "avg",
    "timm_proj": "linear",
}
TEXT = {"vocab_size": 300, "width": 32, "heads": 2, "layers": 1, "context_length": 64}


def _save_tokenizer(folder: Path, **tokens: str) -> None:
    """Train a small tokenizer, as folders of the hub hold one."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=200, special_tokens=special)
    model.train_from_iterator(["a photo of a scratched bolt"] * 9, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>",
        bos_token="<s>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip


def _folder(folder: Path, vision: dict[str, Any], text: dict[str, Any]) -> Path:
    model_cfg: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": vision,
        "text_cfg": text,
        "custom_text": True,
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
    state = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(params=["siglip", "siglip 2", "roberta", "xlm-roberta"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A small CLIP of the kind with its tokenizer, and no network."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _save_tokenizer(tmp_path)
    if request.param.startswith("siglip"):
        text = TEXT | {
            "hf_tokenizer_name": "acme/siglip",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
        }
        if request.param == "siglip 2":
            text["tokenizer_kwargs"] = {}
        return _folder(tmp_path, SIGLIP, text)
    kind = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[request.param]
    getattr(transformers, f"{kind}Config")(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=70,
    ).save_pretrained(tmp_path)  # fmt: skip
    text = {
        "hf_model_name": str(tmp_path),
        "hf_tokenizer_name": "acme/roberta",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "context_length": 64,
    }
    _folder(tmp_path, VISION, text)
    # What the folder's config names is not there; what lies beside it is used.
    path = tmp_path / "open_clip_config.json"
    path.write_text(path.read_text().replace(str(tmp_path), f"acme/{request.param}"))
    return tmp_path


def test_as_open_clip(folder: Path, photos: list[np.ndarray]) -> None:
    clip = OpenCLIP(str(folder))
    model = load(clip)
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        expected = model.model.encode_text(tokens, normalize=True).numpy()
    np.testing.assert_allclose(clip.encode_text(TEXTS), expected, atol=1e-5)
    transform = model.transform("squash")
    from PIL import Image

    pixels = torch.stack([transform(Image.fromarray(p)) for p in photos[:2]])
    with torch.inference_mode():
        expected = model.model.encode_image(pixels, normalize=True).numpy()
    np.testing.assert_allclose(clip.encode_image(photos[:2]), expected, atol=1e-5)
    assert PromptDetector(clip).fit(None).n_features_in_ == 16


def test_another_tokenizer_is_another_text(folder: Path) -> None:
    clip = OpenCLIP(str(folder))
    first = clip.encode_text(["scratched bolt"])
    images = load(clip).identity
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<s>", "<t>"))
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<s>", "<t>"))
    again = OpenCLIP(str(folder), embedding_cache=None).encode_text(["scratched bolt"])
    np.testing.assert_allclose(clip.encode_text(["scratched bolt"]), again, atol=1e-6)
    assert first.shape == again.shape
    assert load(clip).identity == images


@pytest.mark.filterwarnings("ignore::UserWarning")
class TestWithoutThePackage:
    @pytest.fixture(autouse=True)
    def missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)

    @pytest.fixture
    def siglip(self, tmp_path: Path) -> Path:
        text = TEXT | {"hf_tokenizer_name": "acme/siglip", "no_causal_mask": True}
        return _folder(tmp_path, SIGLIP, text)

    def test_images_need_no_tokenizer(
        self, siglip: Path, photos: list[np.ndarray]
    ) -> None:
        assert OpenCLIP(str(siglip)).encode_image(photos[:2]).shape == (2, 16)

    @pytest.mark.parametrize("call", ["encode_text", "fit", "command"])
    def test_texts(
        self, siglip: Path, call: str, photo_files: list[str], capsys: Any
    ) -> None:
        message = r"tokenizer of .* pip install 'clipad-sklearn\[transformers\]'"
        calls: dict[str, Callable[[], Any]] = {
            "encode_text": lambda: OpenCLIP(str(siglip)).encode_text(["a"]),
            "fit": lambda: PromptDetector(str(siglip)).fit(None),
        }
        if call in calls:
            with pytest.raises(ImportError, match=message) as error:
                calls[call]()
            assert "not found" not in str(error.value)
            return
        arguments = [*photo_files, "--clip", str(siglip), "--method", "prompt"]
        assert main(["score", *arguments]) == 2
        assert "pip install 'clipad-sklearn[transformers]'" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32"])
    def test_text_towers(self, name: str) -> None:
        with pytest.raises(ImportError, match=f"text tower of '{name}/random' needs"):
            load(OpenCLIP(name, "random"))


@pytest.mark.parametrize("case", ["allowed", "asked", "text tower"])
def test_code_of_a_model_never_runs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("builtins.input", lambda _="": "y")
    folder, ran = tmp_path / "clip", tmp_path / "ran"
    folder.mkdir()
    code = f"open({str(ran)!r}, 'w').close()\nclass Code: pass\n"
    (folder / "code.py").write_text(code)
    text: dict[str, Any] = TEXT | {"hf_tokenizer_name": "acme/code"}
    names = {"auto_map": {"AutoTokenizer": ["code.Code", None]}}
    if case == "allowed":
        text["tokenizer_kwargs"] = {"trust_remote_code": True}
    _folder(folder, VISION, text)
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if case == "text tower":
        path = folder / "open_clip_config.json"
        config = json.loads(path.read_text())
        config["model_cfg"]["text_cfg"]["hf_model_name"] = "acme/code"
        path.write_text(json.dumps(config))
        names = {"model_type": "code", "auto_map": {"AutoConfig": "code.Code"}}
        (folder / "config.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match=r"clip'.* Python code .* never run here"):
        OpenCLIP(str(folder)).encode_text(["a"])
    assert not ran.exists()


@pytest.mark.parametrize("folder", ["roberta"], indirect=True)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "roberta", "num_hidden_layers": 2000}', "at most 1000 layers"),
        ("version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        ("{", "not a valid config of transformers"),
    ],
)
def test_config_of_the_text_tower(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load(OpenCLIP(str(folder)))


@pytest.mark.parametrize("folder", ["siglip"], indirect=True)
def test_pointer_instead_of_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(OSError, match=r"tokenizer\.json' is a pointer of Git LFS"):
        OpenCLIP(str(folder)).encode_text(["a"])
