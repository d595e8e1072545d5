"""Generated images of textures and objects, good and with a known defect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from sklearn.utils import Bunch, check_random_state

from ._drawn.camera import Camera
from ._drawn.defects import ADJECTIVES, DEFECTS, TROUBLES, Good
from ._drawn.drawing import Array, Random, canvas_of, color_name
from ._drawn.objects import OBJECTS, WITH_PARTS, Change
from ._drawn.textures import NOUNS
from ._drawn.textures import TEXTURES as _TEXTURES

TEXTURE_FAMILIES: tuple[str, ...] = tuple(_TEXTURES)
OBJECT_FAMILIES: tuple[str, ...] = tuple(OBJECTS)
DEFECT_FAMILIES: tuple[str, ...] = tuple(DEFECTS)

STRUCTURAL = frozenset(name for name, spoil in DEFECTS.items() if spoil is None)
# A pixel belongs to the mask where a channel differs by more than this (of 1).
VISIBLE = 8 / 255
# A defect must cover between these shares of the image, and somewhere differ by
# LEAST_CONTRAST, or another one is drawn.
LEAST_SHARE, LARGEST_SHARE, LEAST_CONTRAST = 0.0012, 0.6, 0.12
ATTEMPTS = 12
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One object or texture: the good image, and the same one with a defect."""

    good: Array
    bad: Array | None
    mask: Array | None
    family: str
    defect: str
    severity: float
    color: str
    count: int | None


def draw_sample(
    rng: Random,
    size: int,
    families: Sequence[str],
    defects: Sequence[str],
    severity: tuple[float, float],
    *,
    spoiled: bool = True,
) -> Sample:
    """Draw one sample; every attempt starts from its own generator."""
    family, defect, level = _choose(rng, families, defects, severity)
    best: tuple[float, Sample] | None = None
    for _ in range(ATTEMPTS):
        attempt = np.random.default_rng(rng.integers(2**63))
        sample, contrast = _attempt(attempt, size, family, defect, level, spoiled)
        if not spoiled or sample.mask is None:
            return sample
        share = sample.mask.mean()
        if LEAST_SHARE <= share <= LARGEST_SHARE and contrast >= LEAST_CONTRAST:
            return sample
        quality = contrast if share <= LARGEST_SHARE else 0.0
        if sample.mask.any() and (best is None or quality > best[0]):
            best = quality, sample
    if best is None:
        raise RuntimeError(
            f"No visible {defect!r} could be drawn on {family!r} "
            f"at severity {level:.2f}."
        )
    return best[1]


def _choose(
    rng: Random,
    families: Sequence[str],
    defects: Sequence[str],
    severity: tuple[float, float],
) -> tuple[str, str, float]:
    family = families[int(rng.integers(len(families)))]
    possible = defects
    if family not in WITH_PARTS:
        possible = [name for name in defects if name not in STRUCTURAL]
    defect = possible[int(rng.integers(len(possible)))]
    return family, defect, float(rng.uniform(*severity))


def _attempt(
    rng: Random, size: int, family: str, defect: str, level: float, spoiled: bool
) -> tuple[Sample, float]:
    canvas = canvas_of(size)
    seed = rng.integers(2**63)
    count = None
    if family in _TEXTURES:
        image = np.asarray(_TEXTURES[family](canvas, np.random.default_rng(seed)))
        good = Good(image.astype(np.float32), np.ones((size, size), np.float32), image)
    else:
        scene = OBJECTS[family](canvas, np.random.default_rng(seed), None)
        count = scene.count
        good = Good(scene.image.astype(np.float32), scene.mask, scene.background)
    camera = Camera(canvas, rng)
    clean = camera.expose(good.image)
    spread = (
        clean[good.mask > 0.5].mean(axis=0) if good.mask.max() > 0.5 else clean[0, 0]
    )
    tone = "" if camera.gray or camera.inverted else color_name(spread.tolist())
    if not spoiled:
        return Sample(
            camera.develop(clean), None, None, family, "", 0.0, tone, count
        ), 0.0
    spoil = DEFECTS[defect]
    if spoil is None:
        change = Change(defect, int(rng.integers(2**31)))
        changed = OBJECTS[family](canvas, np.random.default_rng(seed), change).image
    else:
        ready = Good(np.clip(good.image, 0, 1), good.mask, good.background)
        changed = spoil(canvas, rng, ready, level)
    dirty = camera.expose(changed)
    difference = np.abs(dirty - clean).max(axis=-1)
    sample = Sample(
        camera.develop(clean), camera.develop(dirty), difference > VISIBLE,
        family, defect, level, tone, count,
    )  # fmt: skip
    return sample, float(difference.max())


def _caption(rng: Random, sample: Sample, anomalous: bool) -> str:
    """A short sentence about one image."""
    noun = NOUNS[sample.family][rng.integers(len(NOUNS[sample.family]))]
    words = [sample.color, noun] if sample.color else [noun]
    if anomalous and rng.random() < 0.5:
        choices = ADJECTIVES[sample.defect]
        words.insert(0, choices[rng.integers(len(choices))])
    elif anomalous:
        choices = TROUBLES[sample.defect]
        words += ["with", choices[rng.integers(len(choices))]]
    else:
        words.insert(0, ("flawless", "perfect", "normal", "intact")[rng.integers(4)])
    return f"a photo of a {' '.join(words)}."


def make_defect_images(
    n_samples: int = 100,
    *,
    families: str | Sequence[str] | None = None,
    defects: str | Sequence[str] | None = None,
    severity: tuple[float, float] = (0.2, 1.0),
    size: int = 224,
    anomaly_fraction: float = 0.5,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Generate images of textures and objects, good and with a known defect.

    Every image is drawn by code: a texture that fills the image or an object on a
    background, under random light, colours, contrast, blur and noise. An anomalous
    image also has one defect, and a mask of it.

    Parameters
    ----------
    n_samples : int, default=100
        Number of images.
    families : "textures", "objects", str, sequence of str or None, default=None
        What the images show: names from `TEXTURE_FAMILIES` and `OBJECT_FAMILIES`, or
        one of the two words for a whole group. None means all.
    defects : str, sequence of str or None, default=None
        Names from `DEFECT_FAMILIES`. None means all. "missing part", "misplaced
        part" and "wrong part" are only drawn on objects that have parts.
    severity : (float, float), default=(0.2, 1.0)
        Range, within 0..1, of a number that sets the size and the contrast of a
        defect.
    size : int, default=224
        Height and width in pixels, from 32 to 1024.
    anomaly_fraction : float, default=0.5
        Share of anomalous images, from 0 to 1. They are spread evenly over the
        sequence.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same images at every call.

    Returns
    -------
    Bunch
        With the attributes

        images : list of ndarray of shape (size, size, 3), dtype uint8
            The images.
        masks : list of ndarray of shape (size, size), dtype bool
            True where the image differs visibly from the same one without its
            defect, all False for a good image.
        target : ndarray of shape (n_samples,)
            -1 for anomalous, +1 for good images.
        captions : list of str
            A sentence about each image.
        family : list of str
            What each image shows.
        defect : list of str
            "" for good images.

    Raises
    ------
    ValueError
        If a name is unknown, a range is empty or a number is out of range.

    Notes
    -----
    Image `i` depends only on `random_state`, `i` and the other options, so that a
    longer call starts with the images of a shorter one. A change in a channel of more
    than 8 of 255 before the noise counts as visible. Where a defect turns out
    (almost) invisible or covers more than 60 % of the image, it is drawn again.

    The images are drawings. A method that works on them may fail on photographs.

    Examples
    --------
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> data = make_defect_images(4, families="objects", size=64, random_state=0)
    >>> data.images[0].shape
    (64, 64, 3)
    >>> data.target
    array([ 1, -1,  1, -1])
    >>> [bool(mask.any()) for mask in data.masks]
    [False, True, False, True]
    """
    _check_number("n_samples", n_samples, Integral, 0, None)
    _check_number("size", size, Integral, 32, 1024)
    _check_number("anomaly_fraction", anomaly_fraction, Real, 0, 1)
    chosen_families = _names("families", families, _FAMILY_GROUPS)
    chosen_defects = _names("defects", defects, {None: DEFECT_FAMILIES})
    levels = _severity(severity)
    if set(chosen_defects) <= STRUCTURAL:
        lacking = [name for name in chosen_families if name not in WITH_PARTS]
        if lacking and families is not None:
            raise ValueError(
                f"defects={list(chosen_defects)} need objects with parts, and these "
                f"families have none: {lacking}. Families with parts: "
                f"{sorted(WITH_PARTS)}."
            )
        chosen_families = tuple(f for f in chosen_families if f in WITH_PARTS)

    seed = random_state
    if not isinstance(random_state, Integral):
        seed = check_random_state(random_state).randint(2**31 - 1)
    samples, spoiled = [], []
    captions = []
    for i in range(n_samples):
        # Exact share, spread evenly, and independent of n_samples.
        bad = _anomalous_before(i + 1, anomaly_fraction) > _anomalous_before(
            i, anomaly_fraction
        )
        rng = np.random.default_rng([int(seed), i])
        sample = draw_sample(
            rng, size, chosen_families, chosen_defects, levels, spoiled=bad
        )
        captions.append(_caption(rng, sample, bad))
        samples.append(sample)
        spoiled.append(bad)
    nothing = np.zeros((size, size), bool)
    return Bunch(
        images=[s.good if s.bad is None else s.bad for s in samples],
        masks=[nothing.copy() if s.mask is None else s.mask for s in samples],
        target=np.where(np.array(spoiled, bool), -1, 1),
        captions=captions,
        family=[s.family for s in samples],
        defect=[s.defect for s in samples],
    )


def _anomalous_before(i: int, fraction: float) -> int:
    # The small number keeps 100 * 0.29 from being 28.
    return int(i * fraction + 1e-9)


_FAMILY_GROUPS: dict[str | None, tuple[str, ...]] = {
    None: TEXTURE_FAMILIES + OBJECT_FAMILIES,
    "textures": TEXTURE_FAMILIES,
    "objects": OBJECT_FAMILIES,
}


def _names(
    name: str,
    value: str | Sequence[str] | None,
    groups: dict[str | None, tuple[str, ...]],
) -> tuple[str, ...]:
    if value is None or isinstance(value, str):
        if value in groups:
            return groups[value]
        value = [value] if isinstance(value, str) else value
    listed = list(value or [])
    valid = groups[None]
    unknown = [item for item in listed if item not in valid]
    if unknown or not listed:
        also = "".join(f"{group!r}, " for group in groups if group is not None)
        problem = f"unknown: {unknown}" if unknown else "an empty list"
        raise ValueError(
            f"{name}: {problem}. Use None, {also}or some of {list(valid)}."
        )
    return tuple(listed)


def _severity(value: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(number) for number in value)
    except (TypeError, ValueError):
        raise ValueError(
            f"severity must be a pair of numbers such as (0.2, 1.0), got {value!r}"
        ) from None
    if not 0 <= low <= high <= 1:
        raise ValueError(f"severity must satisfy 0 <= low <= high <= 1, got {value!r}")
    return low, high


def _check_number(
    name: str, value: object, kind: type, low: float, high: float | None
) -> None:
    if isinstance(value, kind) and not isinstance(value, bool):
        number = float(value)  # type: ignore[arg-type]
        if number >= low and (high is None or number <= high):
            return
    limits = f"at least {low}" if high is None else f"from {low} to {high}"
    what = "an integer" if kind is Integral else "a number"
    raise ValueError(f"{name} must be {what} {limits}, got {value!r}")
