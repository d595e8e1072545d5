"""Prompts: hand-written sets of states and templates, and random words."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from ._errors import shown
from ._validation import check_value

# Our own choice, not taken from a paper.
DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a cropped photo of a {}.",
    "a cropped photo of the {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
)
# In the random words of a prompt.
_MOST_LETTERS = 200_000
DEFAULT_NORMAL_STATES = ("normal {}", "flawless {}", "perfect {}", "unblemished {}")
DEFAULT_ANOMALOUS_STATES = ("anomalous {}", "damaged {}", "defective {}", "broken {}")


def fill(pattern: str, text: str) -> str:
    """Put `text` where `pattern` has ``{}``; without ``{}``, after `pattern`.

    Braces in `text` are left alone.
    """
    if "{}" not in pattern:
        return f"{pattern} {text}"
    return pattern.replace("{}", text)


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: {shown(text)} is not valid Unicode: it has a lone surrogate at "
            f"position {error.start}."
        ) from None


def _check_strings(name: str, values: Any) -> tuple[str, ...]:
    # A set has no fixed order, so the same seed would give other prompts.
    if isinstance(values, (str, Set)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}={shown(values)}: expected a list of strings.")
    values = tuple(values)
    if not values:
        raise ValueError(f"{name} is empty: give at least one string.")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(
                f"{name}: expected strings, found {shown(value)} of type "
                f"{type(value).__name__}."
            )
        if not value.strip():
            raise ValueError(f"{name} holds a blank string: {shown(value)}.")
        _check_unicode(name, value)
    return tuple(str(value) for value in values)


def _check_states(name: str, values: Any) -> tuple[str, ...]:
    states = _check_strings(name, values)
    for state in states:
        if state.count("{}") > 1:
            raise ValueError(
                f"{name}: {shown(state)} has more than one '{{}}'. A state marks the "
                "place of the object with one '{}', or with none to put it last."
            )
    return states


def _check_different(normal: Sequence[str], anomalous: Sequence[str]) -> None:
    """Check that no state is on both sides, where it would say nothing."""

    def folded(state: str) -> str:
        # Most CLIPs read no case; without a place the object comes last.
        words = state if "{}" in state else f"{state} {{}}"
        return " ".join(words.lower().split())

    both = {folded(state) for state in normal} & {folded(state) for state in anomalous}
    for state in anomalous:
        if folded(state) in both:
            raise ValueError(
                f"anomalous_states: {shown(state)} is one of normal_states too; give "
                "states that differ."
            )


def _check_templates(name: str, values: Any) -> tuple[str, ...]:
    templates = _check_strings(name, values)
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"{name}: {shown(template)} has {template.count('{}')} '{{}}', but a "
                "template needs exactly one, where the state and the object go."
            )
    return templates


def check_class_name(class_name: Any) -> str:
    """Return the name of an object; raise where it is none."""
    if not isinstance(class_name, str):
        raise TypeError(
            f"class_name={shown(class_name)}: expected a string, not a "
            f"{type(class_name).__name__}."
        )
    if not class_name.strip():
        raise ValueError("class_name is blank: name the object, e.g. 'object'.")
    _check_unicode("class_name", class_name)
    return str(class_name)


@dataclass(frozen=True)
class PromptSet:
    """States and templates that together describe normal and anomalous objects.

    A state is put around the name of the object, and the result into a template:
    the state ``"flawless {}"``, the object ``"bottle"`` and the template
    ``"a photo of a {}."`` make ``"a photo of a flawless bottle."``. Every state is
    combined with every template.

    Parameters
    ----------
    normal_states, anomalous_states : sequence of str
        States of a normal and of an anomalous object. ``{}`` marks the place of
        the object and may occur once; a state without it means ``"STATE {}"``.
        Stored as tuples.
    templates : sequence of str
        Sentences. ``{}`` marks the place of the state with its object and must
        occur exactly once. Stored as a tuple.

    Raises
    ------
    TypeError
        If a value is not a sequence of strings.
    ValueError
        If a sequence is empty, a string is blank or has a wrong number of ``{}``, or
        a state is normal and anomalous.

    Examples
    --------
    >>> from clipad_sklearn import PromptSet
    >>> prompts = PromptSet(
    ...     normal_states=["flawless {}", "{} without rust"],
    ...     anomalous_states=["rusty"],
    ...     templates=["a photo of a {}.", "a close-up photo of a {}."],
    ... )
    >>> normal, anomalous = prompts.format("screw")
    >>> anomalous
    ['a photo of a rusty screw.', 'a close-up photo of a rusty screw.']
    >>> len(normal)
    4
    """

    normal_states: tuple[str, ...]
    anomalous_states: tuple[str, ...]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, check in (
            ("normal_states", _check_states),
            ("anomalous_states", _check_states),
            ("templates", _check_templates),
        ):
            # The class is frozen, so the tuples are set behind its back.
            object.__setattr__(self, name, check(name, getattr(self, name)))
        _check_different(self.normal_states, self.anomalous_states)

    def format(self, class_name: str) -> tuple[list[str], list[str]]:
        """Write the prompts for one object.

        Parameters
        ----------
        class_name : str
            Name of the object, used as it is; braces in it have no meaning.

        Returns
        -------
        normal : list of str
            One prompt for each pair of normal state and template, state by state: the
            first state in every template, then the second state, and so on.
        anomalous : list of str
            The same for the anomalous states.
        """
        class_name = check_class_name(class_name)
        normal, anomalous = (
            [
                fill(template, fill(state, class_name))
                for state in states
                for template in self.templates
            ]
            for states in (self.normal_states, self.anomalous_states)
        )
        return normal, anomalous


_TEMPLATES = (
    "a cropped photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a dark photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of the {}.",
    "a photo of a {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "a photo of a {} for anomaly detection.",
)

PRESETS: dict[str, PromptSet] = {
    # The baseline of the WinCLIP paper: the bare states.
    "clip-ac": PromptSet(("normal {}",), ("anomalous {}",), ("{}",)),
    "winclip": PromptSet(
        (
            "{}",
            "flawless {}",
            "perfect {}",
            "unblemished {}",
            "{} without flaw",
            "{} without defect",
            "{} without damage",
        ),
        ("damaged {}", "{} with flaw", "{} with defect", "{} with damage"),
        _TEMPLATES,
    ),
    "clip-ad": PromptSet(
        (
            "flawless {}",
            "perfect {}",
            "unblemished {}",
            "{} without flaw",
            "{} without defect",
            "{} without damage",
            "{} without scratch",
            "{} without crack",
            "{} without contamination",
        ),
        (
            "damaged {}",
            "imperfect {}",
            "blemished {}",
            "broken {}",
            "{} with flaw",
            "{} with defect",
            "{} with damage",
            "{} with scratch",
            "{} with crack",
            "{} with contamination",
        ),
        _TEMPLATES,
    ),
}


def check_prompts(prompts: str | PromptSet) -> PromptSet:
    """Return the `PromptSet` that the parameter `prompts` stands for."""
    if isinstance(prompts, PromptSet):
        return prompts
    names = ", ".join(map(repr, PRESETS))
    if not isinstance(prompts, str):
        raise TypeError(
            f"prompts={shown(prompts)}: expected a PromptSet or one of {names}."
        )
    if prompts not in PRESETS:
        raise ValueError(
            f"prompts={shown(prompts)}: expected one of {names}, or a PromptSet."
        )
    return PRESETS[prompts]


def random_word_prompts(
    n_pairs: int = 10_000,
    *,
    n_words: int | tuple[int, int] = (1, 5),
    word_source: str | Sequence[str] = "letters",
    word_length: int | tuple[int, int] = (3, 10),
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    normal_states: Sequence[str] = DEFAULT_NORMAL_STATES,
    anomalous_states: Sequence[str] = DEFAULT_ANOMALOUS_STATES,
    class_name: str | None = None,
    max_tokens: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[list[str], list[str]]:
    """Write pairs of prompts about random words, one normal and one anomalous.

    Both prompts of a pair have the same template and the same words and differ
    only in the state. Template, states and words are drawn uniformly.

    Parameters
    ----------
    n_pairs : int, default=10_000
        Number of pairs, at least 1. With the same other parameters, the first k
        pairs are the same for every ``n_pairs >= k``.
    n_words : int or (int, int), default=(1, 5)
        Number of random words in a pair, or the smallest and largest number, both
        included. 0 is allowed only with a `class_name`.
    word_source : {"letters", "vocabulary"} or sequence of str, default="letters"
        Where the words come from. ``"letters"``: strings of random letters from a
        to z. ``"vocabulary"``: the alphabetic whole words in the vocabulary of
        CLIP's tokenizer. A sequence: these words, which may be phrases.
    word_length : int or (int, int), default=(3, 10)
        Number of letters in a word, or the smallest and largest number, both
        included. A range is drawn from uniformly for ``"letters"`` and filters the
        words of ``"vocabulary"``. A sequence of words is used as it is.
    templates : sequence of str
        Sentences with one ``{}`` each, where the state with its object goes.
    normal_states, anomalous_states : sequence of str
        States, with at most one ``{}`` where the words go; a state without it
        means ``"STATE {}"``.
    class_name : str or None, default=None
        Name of the object, put after the random words. None: the words alone.
    max_tokens : int or None, default=None
        Largest number of tokens in a prompt, its beginning and end included: the
        context of a CLIP that reads no more, such as 32. Random words are left out at
        the end of a pair until both prompts fit. Counted by the tokenizer that most
        CLIPs of open_clip share. None: prompts are as long as they come.
    random_state : int, RandomState instance or None, default=None
        Seed. A RandomState instance gives one seed per call.

    Returns
    -------
    normal : list of str
        `n_pairs` prompts that say normal.
    anomalous : list of str
        `n_pairs` prompts that say anomalous; ``normal[i]`` and ``anomalous[i]`` are a
        pair.

    Raises
    ------
    TypeError, ValueError
        If a parameter is not what is described above.

    Notes
    -----
    Random words as training data for a detector come from [1]_. Its text was not
    available to us beyond the abstract and summaries, which say that prompts with
    words for normal and anomalous were combined with several randomly generated
    words, in about 10,000 pairs. What the words were, how many there were, whether
    the two prompts of a pair shared them, and the texts of states and templates
    are our own choices, and each is a parameter.

    References
    ----------
    .. [1] M. Tamura, "Random Word Data Augmentation with CLIP for Zero-Shot
       Anomaly Detection", BMVC 2023.

    Examples
    --------
    >>> from clipad_sklearn import random_word_prompts
    >>> normal, anomalous = random_word_prompts(
    ...     2,
    ...     n_words=2,
    ...     word_source=["bottle"],
    ...     templates=["a photo of a {}."],
    ...     normal_states=["flawless"],
    ...     anomalous_states=["damaged"],
    ...     random_state=0,
    ... )
    >>> normal[0]
    'a photo of a flawless bottle bottle.'
    >>> anomalous[0]
    'a photo of a damaged bottle bottle.'
    """
    if not isinstance(n_pairs, Integral) or isinstance(n_pairs, bool):
        raise TypeError(f"n_pairs={n_pairs!r}: expected an integer >= 1.")
    if n_pairs < 1:
        raise ValueError(f"n_pairs={n_pairs!r}: expected an integer >= 1.")
    fewest, most = _check_range("n_words", n_words, minimum=0)
    templates = _check_templates("templates", templates)
    normal_states = _check_states("normal_states", normal_states)
    anomalous_states = _check_states("anomalous_states", anomalous_states)
    _check_different(normal_states, anomalous_states)
    if class_name is not None:
        class_name = check_class_name(class_name)
    elif fewest == 0:
        raise ValueError(
            f"n_words={n_words!r} allows prompts without any word, which need an "
            "object: use at least 1 word, or give a class_name."
        )
    source = _word_source(word_source, word_length)
    if most * source.n_numbers > _MOST_LETTERS:
        letters = ""
        if isinstance(source, _Letters):
            letters = f" with word_length={word_length!r}"
        raise ValueError(
            f"n_words={n_words!r}{letters}: expected at most {_MOST_LETTERS:,} "
            "letters, or words of a list, in a prompt; no CLIP reads so many."
        )
    if isinstance(random_state, bool):
        check_value("random_state", random_state, ["random_state"])
    fits = _fitting(max_tokens)

    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    generator = np.random.default_rng(seed)
    normal: list[str] = []
    anomalous: list[str] = []
    # Every pair uses up one row of random numbers, whatever it makes of it, so the
    # pairs before it decide nothing. In chunks, to bound the memory.
    n_numbers = 4 + most * source.n_numbers
    n_rows = min(10_000, 2**23 // n_numbers)
    while len(normal) < n_pairs:
        numbers = generator.random((min(n_rows, n_pairs - len(normal)), n_numbers))
        sentence = _draw(numbers[:, 0], len(templates))
        good = _draw(numbers[:, 1], len(normal_states))
        bad = _draw(numbers[:, 2], len(anomalous_states))
        counts = fewest + _draw(numbers[:, 3], most - fewest + 1)
        words = source.draw(
            numbers[:, 4:].reshape(len(numbers), most, source.n_numbers)
        )
        for i, row in enumerate(words):
            template = templates[sentence[i]]
            states = normal_states[good[i]], anomalous_states[bad[i]]
            object_name = [] if class_name is None else [class_name]
            for count in range(counts[i], min(fewest, 1) - 1, -1):
                text = " ".join([*row[:count], *object_name])
                pair = [fill(template, fill(state, text)) for state in states]
                if fits(pair):
                    break
            else:
                raise ValueError(
                    f"max_tokens={max_tokens!r}: {shown(pair[0])} is longer with one "
                    "word already. Use shorter words, states or templates."
                )
            normal.append(pair[0])
            anomalous.append(pair[1])
    return normal, anomalous


def _fitting(max_tokens: int | None) -> Callable[[list[str]], bool]:
    """Return what says whether prompts have at most this many tokens."""
    if max_tokens is None:
        return lambda prompts: True
    if not isinstance(max_tokens, Integral) or isinstance(max_tokens, bool):
        raise TypeError(f"max_tokens={max_tokens!r}: expected None or an integer.")
    from open_clip import SimpleTokenizer

    encode = SimpleTokenizer().encode
    return lambda prompts: all(len(encode(p)) + 2 <= max_tokens for p in prompts)


def _check_range(name: str, value: Any, *, minimum: int) -> tuple[int, int]:
    bounds = (value, value) if isinstance(value, Integral) else value
    if (
        not isinstance(bounds, (tuple, list, np.ndarray))
        or len(bounds) != 2
        or any(not isinstance(b, Integral) or isinstance(b, bool) for b in bounds)
    ):
        raise TypeError(
            f"{name}={value!r}: expected an integer, or a pair (smallest, largest) of "
            "integers."
        )
    low, high = (int(bound) for bound in bounds)
    if not minimum <= low <= high:
        raise ValueError(
            f"{name}={value!r}: expected {minimum} <= smallest <= largest."
        )
    return low, high


def _draw(uniform: np.ndarray, n: int) -> np.ndarray:
    """Turn numbers in [0, 1) into integers in [0, n)."""
    return (uniform * n).astype(np.intp)


class _Letters:
    """Words of random letters."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest = shortest
        self.longest = longest
        self.n_numbers = 1 + longest  # the length and the letters

    def draw(self, numbers: np.ndarray) -> Iterator[list[str]]:
        lengths = self.shortest + _draw(
            numbers[..., 0], self.longest - self.shortest + 1
        )
        letters = (ord("a") + _draw(numbers[..., 1:], 26)).astype(np.uint8)
        for row, row_lengths in zip(letters, lengths, strict=True):
            text = row.tobytes().decode("ascii")
            starts = range(0, len(text), self.longest)
            yield [
                text[start : start + length]
                for start, length in zip(starts, row_lengths, strict=True)
            ]


class _WordList:
    """Words from a list."""

    n_numbers = 1

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def draw(self, numbers: np.ndarray) -> Iterator[list[str]]:
        for row in _draw(numbers[..., 0], len(self.words)):
            yield [self.words[index] for index in row]


def _word_source(word_source: Any, word_length: Any) -> _Letters | _WordList:
    if not isinstance(word_source, str):
        return _WordList(_check_strings("word_source", word_source))
    shortest, longest = _check_range("word_length", word_length, minimum=1)
    if word_source == "letters":
        return _Letters(shortest, longest)
    if word_source == "vocabulary":
        words = [w for w in _vocabulary() if shortest <= len(w) <= longest]
        if not words:
            raise ValueError(
                f"word_length={word_length!r}: the vocabulary has no word of such a "
                "length."
            )
        return _WordList(words)
    raise ValueError(
        f"word_source={shown(word_source)}: expected 'letters', 'vocabulary', or "
        "a list of words."
    )


@functools.lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    """Return the alphabetic whole words in the vocabulary of CLIP's tokenizer."""
    # The file is read as such: importing open_clip would import torch.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "word_source='vocabulary' reads the vocabulary that open_clip installs, "
            "and open_clip is missing: pip install open_clip_torch"
        )
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    # As CLIP does: after a line of header, as many merges as fill 49,408 entries
    # together with 256 bytes, bare and at the end of a word, and 2 marks.
    tokens = (line.replace(" ", "") for line in lines[1 : 1 + 49_408 - 2 * 256 - 2])
    words = (token.removesuffix("</w>") for token in tokens if token.endswith("</w>"))
    return tuple(word for word in words if word.isascii() and word.isalpha())
