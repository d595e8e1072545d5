"""The embedded model: its files load everywhere, and it sees and reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import clipad_sklearn
from clipad_sklearn import OpenCLIP, PromptDetector, RandomWordDetector
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.datasets._defect_images import NOUNS
from training.settings import (
    HELD_OUT_DEFECTS,
    HELD_OUT_FAMILIES,
    HELD_OUT_TEXTURES,
    TRAINED_FAMILIES,
)

TINY = Path(clipad_sklearn.__file__).parent / "tiny"
VOCABULARY = TINY / "bpe_merges.txt.gz"


@pytest.fixture(scope="module")
def stock():
    """The model as open_clip alone loads it."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{TINY}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{TINY}", bpe_path=str(VOCABULARY))
    return model.eval(), preprocess, tokenizer


@pytest.fixture(scope="module")
def clip():
    return OpenCLIP("tiny")


def test_files():
    sizes = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert set(sizes) == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "bpe_merges.txt.gz",
    }
    assert sum(sizes.values()) <= 12e6
    assert not gzip.decompress(VOCABULARY.read_bytes()).endswith(b"\n")


def test_configuration_and_vocabulary_belong_together(stock):
    model, _, tokenizer = stock
    config = json.loads((TINY / "open_clip_config.json").read_text())
    assert tokenizer.vocab_size == config["model_cfg"]["text_cfg"]["vocab_size"]
    assert tokenizer.context_length == model.context_length == 64
    assert tokenizer.eot_token_id == tokenizer.vocab_size - 1
    assert config["preprocess_cfg"]["resize_mode"] == "squash"
    assert all(p.isfinite().all() for p in model.parameters())


def test_longest_default_prompt_is_not_cut(stock):
    *_, tokenizer = stock
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    prompts = []
    for _ in range(500):
        words = " ".join("".join(rng.choice(letters, 10)) for _ in range(5))
        prompts.append(f"a jpeg corrupted photo of the {words} without contamination.")
    assert (tokenizer(prompts) != 0).sum(dim=1).max() < 64


@pytest.mark.usefixtures("on_processor")
def test_same_embeddings_by_every_route(stock, clip):
    model, preprocess, tokenizer = stock
    images = make_defect_images(4, size=200, random_state=0).images
    prompts = ["a photo of a damaged object.", "flawless qwertz", "é 日本"]
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.fromarray(i)) for i in images])
        by_image = model.encode_image(pixels, normalize=True).numpy()
        by_text = model.encode_text(tokenizer(prompts), normalize=True).numpy()
    np.testing.assert_allclose(clip.encode_image(images), by_image, atol=2e-6)
    np.testing.assert_allclose(clip.encode_text(prompts), by_text, atol=2e-6)


def auroc(detector, clip, data):
    scores = -detector.score_samples(clip.encode_image(data.images))
    return roc_auc_score(data.target == -1, scores)


@pytest.fixture(scope="module")
def random_words(clip):
    return RandomWordDetector(clip, n_pairs=500, random_state=0).fit(None)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_words_find_defects_of_trained_kinds(random_words, clip, seed):
    data = make_defect_images(
        160,
        families=["wood", "fabric", "leather", "concrete", "asphalt", "paper"],
        defects=["hole", "burn mark", "scratch", "stain", "contamination"],
        severity=(0.6, 1.0),
        size=112,
        random_state=seed,
    )
    assert auroc(random_words, clip, data) > 0.8


def test_random_words_find_held_out_defects_on_held_out_textures(random_words, clip):
    data = make_defect_images(
        160,
        families=HELD_OUT_TEXTURES,
        defects=HELD_OUT_DEFECTS,
        severity=(0.5, 1.0),
        size=112,
        random_state=0,
    )
    assert auroc(random_words, clip, data) > 0.65


@pytest.mark.parametrize("prompts", ["clip-ac", "winclip", "clip-ad"])
def test_prompts_find_defects(clip, prompts):
    data = make_defect_images(
        120,
        families="textures",
        defects=["hole", "burn mark", "stain"],
        severity=(0.6, 1.0),
        size=112,
        random_state=1,
    )
    assert auroc(PromptDetector(clip, prompts=prompts).fit(None), clip, data) > 0.75


def test_it_names_what_it_sees(clip):
    families = [f for f in TRAINED_FAMILIES if f not in HELD_OUT_FAMILIES]
    data = make_defect_images(
        200, families=families, anomaly_fraction=0.0, size=112, random_state=0
    )
    texts = clip.encode_text([f"a photo of a {NOUNS[f][0]}." for f in families])
    named = np.argmax(clip.encode_image(data.images) @ texts.T, axis=1)
    share = np.mean([families[k] == f for k, f in zip(named, data.family, strict=True)])
    assert share > 5 / len(families)


def test_it_tells_colors(clip):
    colors = ("red", "green", "blue", "yellow")
    data = make_defect_images(
        60, families=["ball"], anomaly_fraction=0.0, size=112, random_state=0
    )
    truth = [next((c for c in colors if c in t.split()), "") for t in data.captions]
    kept = [k for k, color in enumerate(truth) if color]
    texts = clip.encode_text([f"a photo of a {color} ball." for color in colors])
    embedded = clip.encode_image([data.images[k] for k in kept])
    named = [colors[k] for k in np.argmax(embedded @ texts.T, axis=1)]
    right = np.mean([a == truth[k] for a, k in zip(named, kept, strict=True)])
    assert len(kept) >= 10
    assert right > 0.4


def test_state_words_are_read_in_context(clip):
    pairs = [
        ("a photo of a flawless {}.", "a photo of a damaged {}."),
        ("{} without any defect", "{} with a defect"),
        ("the unblemished {}", "the broken {}"),
    ]
    words = ["object", "qvlazot", "brk wexlin ptuo", "hazelnut", "metal plate"]
    normal = clip.encode_text([n.format(w) for n, _ in pairs for w in words])
    anomalous = clip.encode_text([a.format(w) for _, a in pairs for w in words])
    direction = (anomalous - normal).mean(axis=0)
    middle = (anomalous + normal).mean(axis=0) @ direction / 2
    assert (normal @ direction < middle).all()
    assert (anomalous @ direction > middle).all()
