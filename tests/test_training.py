"""The training runs, survives a kill, resumes, and learns."""

from __future__ import annotations

import dataclasses
import gzip
import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from processes import Forked, trains_in_a_fork
from torch.nn import functional

from training import captions, tables, train, vocabulary
from training.export import VOCABULARY, WEIGHTS, export
from training.losses import augment, choose_tokens, facts_in_sight, name_images
from training.model import (
    build_model,
    encode_image_tokens,
    encode_texts,
    model_config,
)
from training.pool import fill, record, training_sample, write_shard
from training.settings import (
    HELD_OUT_DEFECTS,
    HELD_OUT_FAMILIES,
    SMOKE,
    TRAINED_DEFECTS,
    TRAINED_FAMILIES,
)
from training.train import Trainer, learning_rate


def read_log(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def words():
    return vocabulary.corpus(5000)


@pytest.fixture(autouse=True)
def _one_corpus(words, monkeypatch):
    """Made once, and shorter, because it takes seconds."""
    monkeypatch.setattr(vocabulary, "corpus", lambda: words)


@pytest.fixture(autouse=True)
def _settings_of_torch():
    """What the training sets for its process would hold for the tests after it."""
    n_threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def smoke_vocabulary(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / VOCABULARY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "corpus", lambda: words)
        vocabulary.write_vocabulary(path, SMOKE.merges)
    return path


@trains_in_a_fork
@pytest.mark.usefixtures("on_processor")
def test_smoke_run_is_killed_goes_on_and_learns(
    smoke_vocabulary, tmp_path, monkeypatch
):
    if hasattr(os, "fork"):  # spawned, the process that makes pairs takes 10 s to start
        fork = multiprocessing.get_context("fork")
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)
    folder = tmp_path / "smoke"
    steps = 20
    images = steps * 2 * SMOKE.pairs_per_step
    options = ["--smoke", "--run", str(folder), "--images", str(images)]

    first = Forked(lambda: train.main(options))
    first.kill_when((folder / "checkpoint.pt").exists)
    assert first.status == -signal.SIGKILL, first.printed
    before = read_log(folder) if (folder / "log.jsonl").exists() else []
    assert not any(entry.get("finished") for entry in before)

    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < steps
    second = Forked(lambda: train.main(options))
    assert second.wait() == 0, second.printed
    log = read_log(folder)
    assert log[-1]["finished"]
    assert log[-1]["images"] == images
    after = log[len(before) :]
    resumed_at = state["step"] + 1
    assert [entry["step"] for entry in after[:-1]] == [*range(resumed_at, steps + 1)]
    assert {entry["step"] for entry in log} == {*range(1, steps + 1)}
    # Batches differ in difficulty, so it takes several to see what was learned.
    loss, text = (
        [np.mean([entry[name] for entry in part]) for part in (log[:5], after[-6:-1])]
        for name in ("loss", "text")
    )
    assert loss[1] < loss[0] - 0.3
    assert text[1] < 0.75 * text[0]

    # The vocabulary, made by a process of its own, is the same here.
    assert (folder / VOCABULARY).read_bytes() == smoke_vocabulary.read_bytes()

    # What it learned can be exported and loads without a warning.
    target = tmp_path / "exported"
    export(folder, target)
    import open_clip

    model = open_clip.create_model(f"local-dir:{target}")
    assert (target / WEIGHTS).stat().st_size < 2e6
    tokens = open_clip.get_tokenizer(
        f"local-dir:{target}", bpe_path=str(target / VOCABULARY)
    )
    assert model.encode_text(tokens(["a photo of a damaged object"])).isfinite().all()


def test_held_out_names_are_absent_from_training():
    rng = np.random.default_rng(0)
    held_out = captions.HELD_OUT_WORDS
    assert {"marble", "gear", "dent", "thread"} <= held_out
    words = set(captions.vocabulary_words())
    assert len(words) > 10_000
    for _ in range(3000):
        texts = [*captions.state_pair(rng)]
        family = captions.pick(rng, TRAINED_FAMILIES)
        defect = captions.pick(rng, TRAINED_DEFECTS)
        texts.append(captions.name_caption(rng, family, defect=defect))
        words.update(" ".join(texts).replace(".", " ").lower().split())
    assert not words & held_out
    for number in range(10):
        sample = training_sample(number, SMOKE)
        assert sample.family not in HELD_OUT_FAMILIES
        assert sample.defect not in HELD_OUT_DEFECTS


def test_state_pairs_say_normal_and_anomalous():
    rng = np.random.default_rng(1)
    for _ in range(200):
        normal, anomalous = captions.state_pair(rng)
        assert normal != anomalous
        assert "{" not in normal + anomalous
        assert "  " not in normal + anomalous


def test_vocabulary_is_what_open_clip_reads(tmp_path):
    path = tmp_path / "merges.txt.gz"
    vocabulary.write_vocabulary(path, 60)
    first = path.read_bytes()
    vocabulary.write_vocabulary(path, 60)
    assert path.read_bytes() == first
    text = gzip.decompress(first).decode()
    assert not text.endswith("\n")
    assert len(text.split("\n")) == 61
    fast = vocabulary.Tokenizer(path)
    assert fast.size == 512 + 60 + 2
    texts = ["A photo of the flawless qzxv, close-up.", "naïve  日本 — x", ""]
    reference = SimpleTokenizer(str(path), context_length=64)(texts).numpy()
    tokens = fast([text.lower() for text in texts])
    assert np.array_equal(tokens, reference[:, : tokens.shape[1]])
    assert not reference[:, tokens.shape[1] :].any()


def test_forward_passes_agree_with_open_clip():
    torch.manual_seed(0)
    model = build_model(model_config(SMOKE, 614)).eval()
    images = torch.randn(2, 3, 112, 112)
    tokens = torch.randint(1, 600, (3, 64))
    tokens[:, 20], tokens[:, 21:] = 613, 0
    with torch.no_grad():
        whole, patches = encode_image_tokens(model, images)
        everything = torch.arange(64).expand(2, 64)
        same, _ = encode_image_tokens(model, images, everything)
        window, few = encode_image_tokens(model, images, everything[:, 9:13])
        texts = encode_texts(model, tokens[:, :21])
        reference = functional.normalize(model.encode_image(images), dim=-1)
        reference_texts = functional.normalize(model.encode_text(tokens), dim=-1)
    assert torch.allclose(whole, reference, atol=1e-5)
    assert torch.allclose(same, whole, atol=1e-5)
    assert torch.allclose(texts, reference_texts, atol=1e-5)
    assert patches.shape == (2, 64, 32)
    assert few.shape == (2, 4, 32)
    assert not torch.allclose(window, whole, atol=1e-2)


def test_tokens_of_a_step():
    rng = np.random.default_rng(0)
    coverage = torch.zeros(8, 64)
    coverage[:, 27] = 1.0
    sizes, hits = set(), 0
    for _ in range(60):
        seed = int(rng.integers(1000))
        kept = choose_tokens(coverage, rng, np.random.default_rng(seed), SMOKE)
        again = choose_tokens(coverage, rng, np.random.default_rng(seed), SMOKE)
        assert (kept is None) == (again is None)
        if kept is None:
            sizes.add(None)
            continue
        sizes.add(kept.shape[1])
        assert kept.shape == again.shape
        assert kept.min() >= 0
        assert kept.max() < 64
        assert all(len(set(row.tolist())) == len(row) for row in kept)
        if kept.shape[1] == 4:
            hits += int((kept == 27).any(dim=1).sum())
    assert {None, 4, 38} <= sizes
    assert hits > 0


def test_both_images_of_a_pair_are_augmented_alike():
    rows = np.zeros(64, record(SMOKE.pool_size))
    for number, row in enumerate(rows):
        fill(row, training_sample(number, SMOKE))
    rows["bad"] = rows["good"]
    views, again = augment(rows, 3), augment(rows, 3)
    assert views.images.shape == (64, 2, 3, 112, 112)
    assert views.masks.shape == (64, 112, 112)
    assert views.images.min() >= 0
    assert views.images.max() <= 1
    assert torch.equal(views.images[:, 0], views.images[:, 1])
    assert torch.equal(views.images, again.images)
    assert not torch.equal(views.images, augment(rows, 4).images)


def test_a_step_forgets_what_it_cannot_see():
    rows = np.zeros(64, record(SMOKE.pool_size))
    rows["count"], rows["color"] = 5, 2
    rows["good"] = (200, 40, 40)
    views = augment(rows, 0)
    assert 0 < views.whole.sum() < 64
    assert 0 < views.colored.sum() < 64
    seen = facts_in_sight(rows, views, all_tokens=True)
    assert np.array_equal(seen["count"] == 5, views.whole)
    assert np.array_equal(seen["color"] == 2, views.colored)
    assert (facts_in_sight(rows, views, all_tokens=False)["count"] == -1).all()
    assert (rows["count"] == 5).all()
    # A view without colour is grey but for the white balance.
    good = views.images[:, 0].mean(dim=(2, 3))
    spread = (good.max(dim=1).values - good.min(dim=1).values).numpy()
    assert np.median(spread[views.colored]) > 2 * np.median(spread[~views.colored])


def test_captions_fit_the_images_that_they_were_written_for():
    rows = np.zeros(12, record(SMOKE.pool_size))
    for number, row in enumerate(rows):
        fill(row, training_sample(number, SMOKE))
    label = np.r_[np.zeros(12), np.ones(12)]
    names = name_images(rows, label, label >= 0, np.random.default_rng(0), 40)
    assert names.fits.shape == names.known.shape == (24, 40)
    assert not (names.fits & ~names.known).any()
    assert names.fits.any(dim=0).all()
    # A caption that names a defect fits no good image.
    assert not names.fits[:12][:, names.with_defect].any()


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.01), (0.3, 1.0), (0.8, 0.5), (1.0, 0.0)]
)
def test_learning_rate(progress, share):
    assert learning_rate(progress, SMOKE) == pytest.approx(
        share * SMOKE.learning_rate, abs=1e-9
    )


def test_captions_that_count_come_with_wrong_counts():
    rows = np.zeros(60, record(SMOKE.pool_size))
    for number, row in enumerate(rows):
        fill(row, training_sample(number, SMOKE))
    assert (rows["count"] > 0).any()
    label = np.r_[np.zeros(60), np.ones(60)]
    arguments = (rows, label, label >= 0)
    alone = name_images(*arguments, np.random.default_rng(0), 200)
    twins = name_images(*arguments, np.random.default_rng(0), 200, twins=True)
    counted = sum(" parts" in text for text in alone.texts)
    assert len(alone.texts) == 200
    assert len(twins.texts) > 200 + counted
    # Nearly all wrong counts fit nothing; a few fit another image by chance.
    fitting_none = ~twins.fits.any(dim=0)
    assert fitting_none.sum() > counted
    assert all(
        " parts" in text
        for text, none in zip(twins.texts, fitting_none.tolist(), strict=True)
        if none
    )


@pytest.mark.parametrize("exported", [True, False])
def test_start_from_another_run(exported, smoke_vocabulary, tmp_path):
    pool, first, second = (tmp_path / name for name in ("pool", "first", "second"))
    for folder in (pool, first, second):
        folder.mkdir()
    write_shard(pool, 0, SMOKE)
    for folder in (first, second):
        shutil.copy(smoke_vocabulary, folder)
    trained = Trainer(first, pool, SMOKE)
    for _ in range(2):
        trained.run_step()
    trained.save("checkpoint.pt")
    start = first / "checkpoint.pt"
    expected = trained.model.state_dict()
    if exported:
        start = tmp_path / "exported"
        export(first, start)
        expected = {k: v.half().float() for k, v in trained.average.weights.items()}
    other = dataclasses.replace(SMOKE, seed=9)
    trainer = Trainer(second, pool, other, start_from=start)
    assert trainer.step == trainer.images == trainer.progress == 0
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_model_card_shows_what_was_measured(tmp_path):
    tables.main(["--target", str(tmp_path / "figures.inc")])
    assert (tmp_path / "figures.inc").read_text() == tables.TARGET.read_text()


def test_table_of_the_model_card():
    drawn = tables.table(("what", "figure"), [("a family", 12.345), ("b", 7)])
    assert drawn.splitlines() == [
        "======== ======",
        "what     figure",
        "======== ======",
        "a family 12.3",
        "b        7",
        "======== ======",
    ]
