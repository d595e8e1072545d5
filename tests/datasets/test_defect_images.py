"""Generated images: repeatable, visibly defective, and strict about their options."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipad_sklearn.datasets import (
    DEFECT_FAMILIES,
    OBJECT_FAMILIES,
    TEXTURE_FAMILIES,
    make_defect_images,
)
from clipad_sklearn.datasets._defect_images import (
    STRUCTURAL,
    VISIBLE,
    WITH_PARTS,
    draw_sample,
)
from clipad_sklearn.datasets._drawn.drawing import color_name

SIZE = 48


def same(first, second):
    return all(
        np.array_equal(a, b) for a, b in zip(first.images, second.images, strict=True)
    )


def test_there_are_enough_families():
    assert len(TEXTURE_FAMILIES) >= 26
    assert len(OBJECT_FAMILIES) >= 30
    assert len(DEFECT_FAMILIES) >= 22


def test_what_is_returned():
    data = make_defect_images(9, size=SIZE, random_state=0)
    assert {len(data[name]) for name in data} == {9}
    for image, mask, target, caption, family, defect in zip(
        data.images,
        data.masks,
        data.target,
        data.captions,
        data.family,
        data.defect,
        strict=True,
    ):
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == np.uint8
        assert mask.shape == (SIZE, SIZE)
        assert mask.dtype == bool
        assert caption.startswith("a photo of a ")
        assert family in TEXTURE_FAMILIES + OBJECT_FAMILIES
        assert (target == -1) == mask.any() == (defect in DEFECT_FAMILIES)
        assert (target == 1) == (defect == "")


def test_same_seed_same_images_other_seed_other_images():
    first, second = (make_defect_images(6, size=SIZE, random_state=3) for _ in "ab")
    assert same(first, second)
    assert first.captions == second.captions
    assert not same(first, make_defect_images(6, size=SIZE, random_state=4))
    states = [np.random.RandomState(5) for _ in "ab"]
    assert same(*(make_defect_images(3, size=SIZE, random_state=s) for s in states))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 5), st.floats(0, 1))
def test_a_longer_call_starts_with_a_shorter_one(seed, count, fraction):
    options = {"size": 32, "random_state": seed, "anomaly_fraction": fraction}
    short, long = (make_defect_images(n, **options) for n in (count, count + 3))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(short.images, long.images[:count], strict=True)
    )
    assert list(short.target) == list(long.target[:count])
    assert short.captions == long.captions[:count]
    assert (long.target == -1).sum() == int((count + 3) * fraction + 1e-9)


@pytest.mark.parametrize("family", TEXTURE_FAMILIES + OBJECT_FAMILIES)
def test_every_family_renders(family):
    data = make_defect_images(
        2, families=[family], size=SIZE, anomaly_fraction=0.5, random_state=1
    )
    assert data.family == [family, family]
    assert data.masks[1].any()
    if family != "plain surface":
        assert data.images[0].std() > 0


@pytest.mark.parametrize("defect", DEFECT_FAMILIES)
@pytest.mark.parametrize("group", ["textures", "objects"])
def test_every_defect_shows_and_its_mask_is_where_it_shows(defect, group):
    if defect in STRUCTURAL:
        families = sorted(WITH_PARTS)
    else:
        families = TEXTURE_FAMILIES if group == "textures" else OBJECT_FAMILIES
    rng = np.random.default_rng(DEFECT_FAMILIES.index(defect))
    sample = draw_sample(rng, SIZE, families, [defect], (0.2, 1.0))
    assert sample.defect == defect
    change = np.abs(sample.good.astype(float) - sample.bad.astype(float)).max(axis=-1)
    assert 0 < sample.mask.mean() <= 0.6
    # Rounding to uint8 moves each image by half a grey level at most.
    assert (change[sample.mask] > 255 * VISIBLE - 1.01).mean() > 0.8
    assert (change[~sample.mask] <= 255 * VISIBLE + 1.01).all()


def test_structural_defects_are_drawn_on_objects_with_parts():
    data = make_defect_images(
        12,
        defects=["missing part", "wrong part"],
        size=SIZE,
        anomaly_fraction=1.0,
        random_state=0,
    )
    assert set(data.family) <= WITH_PARTS


def test_severity_makes_defects_larger():
    areas = [
        np.mean(
            [
                mask.mean()
                for mask in make_defect_images(
                    30,
                    defects=["burn mark", "bite"],
                    severity=(level, level),
                    size=SIZE,
                    anomaly_fraction=1.0,
                    random_state=0,
                ).masks
            ]
        )
        for level in (0.1, 1.0)
    ]
    assert areas[1] > 1.5 * areas[0]


def test_fractions():
    for fraction, count in ((0.0, 0), (1.0, 8), (0.25, 2), (0.625, 5)):
        data = make_defect_images(8, size=32, anomaly_fraction=fraction, random_state=0)
        assert (data.target == -1).sum() == count
    assert make_defect_images(0).images == []


def test_the_same_picture_at_another_size():
    small, large = (
        make_defect_images(
            4, families=["toy car", "pipe", "stripes"], size=size, random_state=2
        )
        for size in (64, 128)
    )
    assert small.family == large.family
    assert small.defect == large.defect


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0.9, 0.1, 0.1), "red"),
        ((0.1, 0.7, 0.2), "green"),
        ((0.15, 0.2, 0.9), "blue"),
        ((0.95, 0.9, 0.15), "yellow"),
        ((0.45, 0.25, 0.1), "brown"),
        ((0.02, 0.02, 0.03), "black"),
        ((0.98, 0.97, 0.99), "white"),
        ((0.5, 0.5, 0.5), "gray"),
        ((0.75, 0.75, 0.75), ""),
    ],
)
def test_color_names(rgb, name):
    assert color_name(rgb) == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": -1}, "n_samples must be an integer at least 0, got -1"),
        ({"n_samples": 2.5}, "n_samples must be an integer"),
        ({"families": "wod"}, r"families: unknown: \['wod'\].*'wood'"),
        ({"families": ["wood", "x"]}, r"families: unknown: \['x'\]"),
        ({"families": []}, "families: an empty list"),
        ({"defects": ["scratch", "y"]}, r"defects: unknown: \['y'\].*'scratch'"),
        ({"defects": "textures"}, r"defects: unknown"),
        ({"defects": []}, "defects: an empty list"),
        ({"severity": 0.5}, "severity must be a pair of numbers"),
        ({"severity": (0.8, 0.2)}, "severity must satisfy"),
        ({"severity": (0.2, 1.2)}, "severity must satisfy"),
        ({"size": 16}, "size must be an integer from 32 to 1024, got 16"),
        ({"size": True}, "size must be an integer"),
        ({"anomaly_fraction": 1.1}, "anomaly_fraction must be a number from 0 to 1"),
        ({"anomaly_fraction": "half"}, "anomaly_fraction must be a number"),
        (
            {"families": ["wood"], "defects": ["missing part"]},
            r"need objects with parts.*\['wood'\]",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_defect_images(**{"n_samples": 2, **options})
