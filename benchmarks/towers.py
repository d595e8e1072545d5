"""Which CLIPs of open_clip work for which method, and whether they encode alike.

    python benchmarks/towers.py --table
    python benchmarks/towers.py --compare [NAME ...]

``--table`` writes docs/guide/towers.csv and towers.txt. Every configuration is built in
full size without weights (on torch's "meta" device, which computes shapes but no
numbers), with a small text tower in place of its own, and asked for its patch tokens
and for embeddings at other input sizes. Then the smallest of each row is given
random weights and really run with each of the methods.

``--compare`` gives configurations random weights and prints the largest difference
between our embeddings and open_clip's own. The vision towers are in full size.
Tokenizers and text towers of transformers cannot be had without a network: a tokenizer
trained on a few words, and a text tower of the same class with two layers, stand in for
them, which shows that texts take the same way, not that the tokens are those of the
published model.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from clipad_sklearn import (
    OpenCLIP,
    PromptDetector,
    ReferenceDetector,
    SDPDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._clip.image_size import set_image_size
from clipad_sklearn._clip.models import load
from clipad_sklearn._clip.patch_tokens import PatchTower
from clipad_sklearn._clip.vision_tower import VisionTower

GUIDE = Path(__file__).parents[1] / "docs" / "guide"
SMALL_TEXT = {"context_length": 77, "width": 32, "heads": 2, "layers": 1}
# The first that is part of the name, whatever its case.
FAMILIES = {
    "coca": "CoCa", "convnext": "ConvNeXt", "eva": "EVA", "mobileclip": "MobileCLIP",
    "pe-core": "PE-Core", "rn": "ResNet", "siglip2": "SigLIP 2", "siglip": "SigLIP",
    "swin": "Swin", "vitamin": "ViTamin", "vit_": "ViT of timm", "vit": "ViT",
    "nllb": "ViT",
}  # fmt: skip
# A multiple of the patches of all towers.
OTHER_SIDE = 2016
METHODS = ("references", "windows", "dual path", "other sizes")


# -- which ones work ---------------------------------------------------------------


class OnMeta:
    """What the towers need of a loaded model, without numbers."""

    device = "meta"

    def __init__(self, name: str) -> None:
        with torch.device("meta"):
            self.model = open_clip.create_model(
                name, load_weights=False, device="meta", text_cfg=SMALL_TEXT
            )
        self.model.eval()

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        with torch.inference_mode():
            yield


def answers(name: str) -> tuple[list[str], str, int]:
    """Say what works with a configuration; with its tower's kind and size."""
    model: Any = OnMeta(name)
    visual = model.model.visual
    found = dict.fromkeys(METHODS, "no")
    PatchTower(model)  # asks the tower for its grids, or raises
    found["references"] = "yes"
    with contextlib.suppress(ValueError):
        tower = VisionTower(model)
        found["windows"] = "yes"
        tower.check_dual_path()
        found["dual path"] = "yes"
    n_parameters = sum(p.numel() for p in visual.parameters())
    takes = []
    for size in (OTHER_SIDE, OTHER_SIDE), (OTHER_SIDE, 2 * OTHER_SIDE):
        with contextlib.suppress(ValueError, RuntimeError, AssertionError):
            set_image_size(visual, size)
            with torch.inference_mode():
                model.model.encode_image(torch.zeros((1, 3, *size), device="meta"))
            takes.append(size)
    found["other sizes"] = ("no", "square", "yes")[len(takes)]
    kind = type(getattr(visual, "trunk", visual)).__name__
    library = "timm" if hasattr(visual, "trunk") else "open_clip"
    return list(found.values()), f"{kind} ({library})", n_parameters


def family(name: str) -> str:
    return next(title for part, title in FAMILIES.items() if part in name.lower())


def table() -> None:
    """Write a row for each family of towers with equal answers."""
    rows: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    names = open_clip.list_models()
    known_towers: dict[str, Any] = {}  # many differ only in their texts
    for name in names:
        vision = json.dumps(open_clip.get_model_config(name)["vision_cfg"])
        if vision not in known_towers:
            known_towers[vision] = answers(name)
        found, kind, n_parameters = known_towers[vision]
        row = (family(name), kind, *found)
        rows.setdefault(row, []).append((n_parameters, name))
    body = []
    for row, models in sorted(rows.items(), key=lambda item: item[0][0].lower()):
        smallest = min(models)[1]
        really_run(smallest, dict(zip(METHODS, row[2:], strict=True)))
        known = ", ".join(name for _, name in models)
        body.append([*row, str(len(models)), smallest, known])
        print(" | ".join(body[-1]), flush=True)
    with open(GUIDE / "towers.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        titles = [method.capitalize() for method in METHODS]
        writer.writerow(
            ["Family", "Vision tower", *titles, "Number", "Really run", "Models"]
        )
        writer.writerows(body)
    (GUIDE / "towers.txt").write_text(summary(names, body), encoding="utf-8")


def summary(names: list[str], body: list[list[str]]) -> str:
    """Return the sentences above the table."""
    counts = {
        method: sum(int(row[6]) for row in body if row[2 + i] == "yes")
        for i, method in enumerate(METHODS)
    }
    texts = [open_clip.get_model_config(name)["text_cfg"] for name in names]
    towers = sum(bool(text.get("hf_model_name")) for text in texts)
    tokenizers = sum(bool(text.get("hf_tokenizer_name")) for text in texts) - towers
    return (
        f"Of the {len(names)} configurations of open_clip {open_clip.__version__}, "
        f"{counts['references']} work for references, {counts['windows']} for windows, "
        f"{counts['dual path']} for the dual path, and {counts['other sizes']} take "
        f"any other input size. {tokenizers} need the extra ``[transformers]`` for "
        f"their tokenizer and {towers} for their text tower; the others need nothing "
        "more. Detectors on embeddings work with all of them.\n"
    )


def really_run(name: str, expected: dict[str, str]) -> None:
    """Give a configuration random weights, and see that the answers hold."""
    config = open_clip.get_model_config(name)
    config["text_cfg"] = SMALL_TEXT
    rng = np.random.default_rng(0)
    photos = list(rng.integers(0, 256, (3, 60, 80, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder, config)
        clip = OpenCLIP(folder, "random", embedding_cache=None)
        prompts = {"prompts": "clip-ac"}
        scorer = PromptDetector(clip, **prompts)
        detectors: dict[str, Any] = {
            "references": ReferenceDetector(clip),
            "windows": WinCLIPDetector(clip, scorer=scorer, window_sizes=(2,)),
            "dual path": SDPDetector(clip, **prompts),
        }
        for method, detector in detectors.items():
            try:
                detector.fit(photos[:2] if method == "references" else None)
                maps = detector.anomaly_maps(photos[2:])
                works = np.isfinite(maps[0]).all() and maps[0].shape == (60, 80)
            except ValueError:
                works = False
            if works != (expected[method] == "yes"):
                raise AssertionError(f"{name}, {method}: {works}, not as said")
    clear_models()


def write_config(folder: str, config: dict[str, Any]) -> None:
    """Write what makes a folder a CLIP for open_clip."""
    known = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3}}
    Path(folder, "open_clip_config.json").write_text(json.dumps(known))


# -- whether they encode alike -------------------------------------------------------

# The smallest of each family of the last years, and one with other text.
COMPARED = [
    "EVA02-B-16", "PE-Core-T-16-384", "coca_ViT-B-32", "MobileCLIP2-S0",
    "convnext_tiny", "ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256",
    "xlm-roberta-base-ViT-B-32",
]  # fmt: skip
TEXTS = ["a photo of a flawless bolt", "scratched", "", "a photo of a very old screw"]


def compare(name: str) -> None:
    """Print the largest differences to open_clip's own way, same weights."""
    with tempfile.TemporaryDirectory() as folder:
        text = open_clip.get_model_config(name)["text_cfg"]
        plain = not text.get("hf_tokenizer_name")
        if not plain:
            write_stand_in(folder, name)
        clip = OpenCLIP(
            name if plain else folder, "random", embedding_cache=None, device="cpu"
        )
        model = load(clip)
        # open_clip's own, apart from ours.
        ours = model.model.state_dict()
        place = name if plain else f"local-dir:{folder}"
        theirs = open_clip.create_model(
            place, load_weights=False, pretrained_text=False
        ).eval()
        theirs.load_state_dict(ours)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(2)]
        known = theirs.visual.preprocess_cfg
        transform = open_clip.image_transform(
            theirs.visual.image_size, is_train=False, resize_mode="squash",
            interpolation=known["interpolation"], mean=known["mean"], std=known["std"],
        )  # fmt: skip
        pixels = torch.stack([transform(Image.fromarray(image)) for image in images])
        tokens = open_clip.get_tokenizer(place)(TEXTS)
        with torch.inference_mode():
            expected = theirs.encode_image(pixels, normalize=True).numpy()
            expected_texts = theirs.encode_text(tokens, normalize=True).numpy()
        difference = float(np.abs(clip.encode_image(images) - expected).max())
        of_texts = float(np.abs(clip.encode_text(TEXTS) - expected_texts).max())
    said = "" if plain else " (with the stand-in for the tokenizer)"
    print(f"{name}: images {difference:.1e}, texts {of_texts:.1e}{said}", flush=True)
    clear_models()


def write_stand_in(folder: str, name: str) -> None:
    """Write the configuration with a small tokenizer and text tower beside it."""
    import tokenizers
    import transformers

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=200, special_tokens=[*special.values(), "<unk>"]
    )
    model.train_from_iterator(TEXTS * 3, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", **special
    ).save_pretrained(folder)
    config = open_clip.get_model_config(name)
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        transformers.XLMRobertaConfig(
            vocab_size=300, num_hidden_layers=2, max_position_embeddings=514
        ).save_pretrained(folder)
        text["hf_model_name"] = text["hf_tokenizer_name"] = folder
    else:
        text |= {"vocab_size": 300}
    write_config(folder, config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--compare", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", UserWarning)
    if arguments.table:
        table()
    if arguments.compare is not None:
        for model_name in arguments.compare or COMPARED:
            compare(model_name)
