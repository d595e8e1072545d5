"""Prompts that are longer than what a CLIP reads."""

from __future__ import annotations

import warnings

import numpy as np
import open_clip
import pytest

from clipad_sklearn import (
    OpenCLIP,
    PromptDetector,
    PromptSet,
    RandomWordDetector,
    SDPDetector,
    random_word_prompts,
)
from clipad_sklearn._clip.models import load

LONG = " ".join(["long description of the part number"] * 14)


def test_one_warning_counts_them() -> None:
    clip = OpenCLIP("tiny")
    texts = ["short", LONG, f"another {LONG}", LONG, "a" * 64, "x " * 63, "a b"]
    with pytest.warns(UserWarning, match="^3 of 6 prompts are longer") as seen:
        rows = clip.encode_text(texts)
    assert len(seen) == 1
    message = str(seen[0].message)
    assert "64 tokens" in message
    assert "as of 'long description of the part" in message
    assert "the part number'. Shorten" in message
    assert len(message) < 400
    np.testing.assert_array_equal(rows[1], rows[3])
    with pytest.warns(UserWarning, match="^1 of 1 prompts"):
        clip.encode_text([LONG])  # from the cache: cut all the same


@pytest.mark.parametrize("n_words", [61, 62, 63, 64])
def test_exactly_what_fits(n_words: int) -> None:
    """62 tokens, with beginning and end 64, fit; one more does not."""
    text = " ".join("x" * n_words)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        OpenCLIP("tiny").encode_text([text])
    tokens = load(OpenCLIP("tiny")).tokenizer.encode(text)
    assert len(tokens) == n_words
    assert bool(seen) == (n_words > 62)


PROMPTS = PromptSet(["{} without damage"], ["{} with damage"], ["a photo of a {}."])


@pytest.mark.parametrize(
    "detector",
    [
        PromptDetector("tiny", prompts=PROMPTS, class_name=LONG),
        SDPDetector("tiny", prompts=PROMPTS, class_name=LONG),
        RandomWordDetector(
            "tiny", n_pairs=3, class_name=LONG, normal_states=["{} as new"],
            anomalous_states=["{} scratched"], random_state=0,
        ),
        # One of both fits exactly, and is where the other one is cut.
        PromptDetector(
            "tiny",
            prompts=PromptSet(["{}"], ["{} with damage"], ["{}"]),
            class_name=" ".join("x" * 62),
        ),
    ],
)  # fmt: skip
def test_pairs_that_become_equal(detector: PromptDetector) -> None:
    with pytest.raises(
        ValueError, match="become equal, because this CLIP reads the "
    ) as raised:
        detector.fit(None)
    assert len(str(raised.value)) < 400


@pytest.mark.filterwarnings("ignore:.*longer than the context")
def test_pairs_that_differ_before_the_cut() -> None:
    prompts = PromptSet(["flawless {}"], ["damaged {}"], ["a photo of a {}."])
    detector = PromptDetector("tiny", prompts=prompts, class_name=LONG).fit(None)
    assert np.abs(np.diff(detector.prototypes_[0], axis=0)).max() > 1e-3


class TestMaxTokens:
    @pytest.mark.parametrize("max_tokens", [24, 32])
    def test_is_kept(self, max_tokens: int) -> None:
        encode = open_clip.SimpleTokenizer().encode
        plain = random_word_prompts(60, random_state=0)
        short = random_word_prompts(60, max_tokens=max_tokens, random_state=0)
        for before, after in zip(
            zip(*plain, strict=True), zip(*short, strict=True), strict=True
        ):
            assert max(len(encode(prompt)) + 2 for prompt in after) <= max_tokens
            fitted = max(len(encode(prompt)) + 2 for prompt in before) <= max_tokens
            assert (before == after) == fitted
        assert short != plain

    def test_first_pairs_stay(self) -> None:
        few = random_word_prompts(5, max_tokens=24, random_state=3)
        many = random_word_prompts(40, max_tokens=24, random_state=3)
        assert few == (many[0][:5], many[1][:5])

    def test_class_name_alone(self) -> None:
        normal, _ = random_word_prompts(
            9, n_words=(0, 4), class_name="bolt", max_tokens=18, random_state=0
        )
        assert all("bolt" in prompt for prompt in normal)

    @pytest.mark.parametrize(
        ("max_tokens", "error", "message"),
        [
            (5, ValueError, "is longer with one word already"),
            (2.5, TypeError, "max_tokens=2.5: expected None or an integer"),
            (True, TypeError, "max_tokens=True"),
        ],
    )
    def test_errors(
        self, max_tokens: object, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            random_word_prompts(3, max_tokens=max_tokens, random_state=0)
