"""Captions and prompts of the training, and the words that they use."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from clipad_sklearn.datasets._defect_images import ADJECTIVES, NOUNS, NUMBERS, TROUBLES
from clipad_sklearn.datasets._drawn.drawing import COLORS

from .settings import (
    HELD_OUT_DEFECTS,
    HELD_OUT_FAMILIES,
    TRAINED_DEFECTS,
    TRAINED_FAMILIES,
)

Random = np.random.Generator

# States that say nothing about the kind of defect: "{}" is the object.
NORMAL_ADJECTIVES = (
    "normal", "flawless", "perfect", "unblemished", "intact", "undamaged", "clean",
    "good", "pristine", "faultless", "unbroken", "spotless", "sound", "defect free",
    "ok", "acceptable", "regular",
)  # fmt: skip
ANOMALOUS_ADJECTIVES = (
    "anomalous", "damaged", "defective", "broken", "flawed", "imperfect", "blemished",
    "abnormal", "faulty", "bad", "spoiled", "impaired", "irregular", "rejected",
)  # fmt: skip
TROUBLE_NOUNS = (
    "flaw", "defect", "damage", "anomaly", "blemish", "fault", "imperfection",
    "flaws", "defects", "blemishes", "faults",
)  # fmt: skip
ABSENT = ("{} without {}", "{} without any {}", "{} with no {}", "{} free of {}")
PRESENT = ("{} with {}", "{} with a {}", "{} that has {}", "{} showing {}")
# The states that users will meet most.
MAIN_NORMAL = ("normal", "flawless", "perfect", "unblemished")
MAIN_ANOMALOUS = ("anomalous", "damaged", "defective", "broken")

TEMPLATES = (
    "{}", "{}", "a {}", "the {}", "a photo of a {}", "a photo of a {}",
    "a photo of the {}", "a photo of {}", "a close-up photo of a {}",
    "a close-up photo of the {}", "a cropped photo of the {}",
    "a cropped photo of a {}", "a bright photo of a {}", "a bright photo of the {}",
    "a dark photo of the {}", "a dark photo of a {}", "a blurry photo of a {}",
    "a blurry photo of the {}", "a jpeg corrupted photo of a {}",
    "a jpeg corrupted photo of the {}", "a low resolution photo of the {}",
    "a black and white photo of a {}", "a photo of my {}", "a photo of one {}",
    "a photo of a small {}", "a photo of the small {}", "a photo of a large {}",
    "a photo of the large {}", "a photo of a {} for visual inspection",
    "a photo of the {} for visual inspection", "a photo of a {} for anomaly detection",
    "a photo of the {} for anomaly detection", "there is a {} in the scene",
    "this is the {} in the scene", "an image of a {}", "a picture of the {}",
    "an industrial image of a {}", "inspection image: {}", "a view of the {}",
    "one {} on a table", "we see a {}",
)  # fmt: skip
OBJECT_WORDS = (
    "object", "object", "item", "product", "sample", "thing", "surface", "part",
    "component", "workpiece", "material", "",
)  # fmt: skip
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def _words(*groups: object) -> set[str]:
    """All single words of nested tuples of strings."""
    found: set[str] = set()
    for group in groups:
        if isinstance(group, str):
            found.update(group.replace("{}", " ").lower().split())
        else:
            found.update(_words(*group))  # type: ignore[misc]
    return found


_HELD = _words(
    [NOUNS[f] for f in HELD_OUT_FAMILIES],
    [ADJECTIVES[d] + TROUBLES[d] for d in HELD_OUT_DEFECTS],
)
_TRAINED = _words(
    [NOUNS[f] for f in TRAINED_FAMILIES],
    [ADJECTIVES[d] + TROUBLES[d] for d in TRAINED_DEFECTS],
)
HELD_OUT_WORDS = frozenset(_HELD - _TRAINED)
_MEANINGFUL = _words(
    NORMAL_ADJECTIVES, ANOMALOUS_ADJECTIVES, TROUBLE_NOUNS, ABSENT, PRESENT,
    [ADJECTIVES[d] + TROUBLES[d] for d in TRAINED_DEFECTS], COLORS, NUMBERS,
    [NOUNS[f] for f in TRAINED_FAMILIES], "not no none never un non less",
)  # fmt: skip


@lru_cache(maxsize=1)
def vocabulary_words() -> tuple[str, ...]:
    """Ordinary words for random prompts, from the tokenizer of open_clip."""
    from open_clip.tokenizer import SimpleTokenizer

    ends = [token[:-4] for token in SimpleTokenizer().encoder if token.endswith("</w>")]
    stems = tuple(sorted(HELD_OUT_WORDS))
    return tuple(
        word
        for word in ends
        if word.isascii() and word.isalpha() and 3 <= len(word) <= 10
        and word not in _MEANINGFUL and not word.startswith(stems)
    )  # fmt: skip


def pick(rng: Random, choices: tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]


def random_word(rng: Random) -> str:
    """A word of random letters, or an ordinary word."""
    if rng.random() < 0.35:
        return pick(rng, vocabulary_words())
    return "".join(LETTERS[rng.integers(0, 26, rng.integers(3, 11))])


def random_words(rng: Random) -> str:
    return " ".join(random_word(rng) for _ in range(rng.integers(1, 6)))


def _object(rng: Random) -> str:
    """What a prompt about states is about."""
    kind = rng.random()
    if kind < 0.55:
        return random_words(rng)
    if kind < 0.75:
        return pick(rng, OBJECT_WORDS)
    noun = pick(rng, NOUNS[pick(rng, TRAINED_FAMILIES)])
    if rng.random() < 0.3:
        noun = pick(rng, COLORS) + " " + noun
    if kind > 0.9:
        noun = (
            f"{noun} {random_words(rng)}"
            if rng.random() < 0.5
            else (f"{random_words(rng)} {noun}")
        )
    return noun


def _finish(rng: Random, phrase: str) -> str:
    text = " ".join(pick(rng, TEMPLATES).format(phrase).split())
    return text + "." if rng.random() < 0.5 else text


def state_pair(rng: Random) -> tuple[str, str]:
    """A normal and an anomalous prompt; half of the pairs share all other words."""
    shared = rng.random() < 0.5
    template = pick(rng, TEMPLATES)
    stop = "." if rng.random() < 0.5 else ""
    object_words = _object(rng)
    kind = rng.random()
    if kind < 0.35:
        normal = pick(rng, MAIN_NORMAL) + " {}"
        anomalous = pick(rng, MAIN_ANOMALOUS) + " {}"
    elif kind < 0.6:
        normal = pick(rng, NORMAL_ADJECTIVES) + " {}"
        anomalous = pick(rng, ANOMALOUS_ADJECTIVES) + " {}"
        if rng.random() < 0.4:
            anomalous = pick(rng, ADJECTIVES[pick(rng, TRAINED_DEFECTS)]) + " {}"
    else:
        choices = TROUBLE_NOUNS
        if rng.random() < 0.5:
            choices = TROUBLES[pick(rng, TRAINED_DEFECTS)]
        trouble = pick(rng, choices)
        k = rng.integers(len(ABSENT))
        normal = ABSENT[k].format("{}", trouble)
        k = k if k < 2 else rng.integers(len(PRESENT))
        anomalous = PRESENT[k].format("{}", trouble)
    texts = []
    for state in (normal, anomalous):
        text = template.format(state.format(object_words))
        texts.append(" ".join(text.split()) + stop)
        if not shared:
            template, object_words = pick(rng, TEMPLATES), _object(rng)
            stop = "." if rng.random() < 0.5 else ""
    return texts[0], texts[1]


def name_caption(
    rng: Random,
    family: str | None,
    *,
    color: str = "",
    count: int | None = None,
    defect: str = "",
) -> str:
    """A caption of what an image shows, without a general state word."""
    noun = pick(rng, NOUNS[family]) if family else pick(rng, OBJECT_WORDS)
    if count is not None:
        number = NUMBERS[count] if rng.random() < 0.7 else str(count)
        noun = f"{noun} with {number} parts"
    words = f"{color} {noun}".strip()
    if defect and rng.random() < 0.5:
        words = pick(rng, ADJECTIVES[defect]) + " " + words
    elif defect:
        joint = " and " if count is not None else " with "
        words = words + joint + pick(rng, TROUBLES[defect])
    if rng.random() < 0.15:
        words = f"{words} {random_word(rng)}"
    return _finish(rng, words)
