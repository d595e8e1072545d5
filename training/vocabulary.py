"""The vocabulary: a small byte-level BPE, trained on the project's own texts.

The file has the format that `open_clip.tokenizer.SimpleTokenizer` reads: a header
line, then one merge per line, gzip, and no newline at the end (it would be read as one
more merge and would shift the special tokens).
"""

from __future__ import annotations

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode

from . import captions
from .settings import CONTEXT_LENGTH, TRAINED_FAMILIES

HEADER = '"byte-level merges of the embedded model of clipad-sklearn"'


def corpus(n_pairs: int = 30_000) -> Counter[str]:
    """Words and how often the project's captions use them."""
    rng = np.random.default_rng(0)
    words: Counter[str] = Counter()
    for _ in range(n_pairs):
        texts = captions.state_pair(rng)
        family = captions.pick(rng, TRAINED_FAMILIES)
        for text in (*texts, captions.name_caption(rng, family)):
            cleaned = "".join(c if c.isalpha() else " " for c in text.lower())
            words.update(cleaned.split())
    return words


def train_merges(words: Counter[str], n_merges: int) -> list[tuple[str, str]]:
    """The most frequent pairs of symbols, merged one after the other."""
    table = bytes_to_unicode()
    splits: dict[str, list[str]] = {}
    for word in words:
        letters = [table[byte] for byte in word.encode()]
        splits[word] = [*letters[:-1], letters[-1] + "</w>"]
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[str]] = {}
    for word, split in splits.items():
        for pair in pairwise(split):
            pairs[pair] += words[word]
            where.setdefault(pair, set()).add(word)
    merges: list[tuple[str, str]] = []
    while len(merges) < n_merges and pairs:
        # Ties are broken by the letters, so that the result has one value.
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in where.pop(best):
            split = splits[word]
            for pair in pairwise(split):
                pairs[pair] -= words[word]
                if pairs[pair] <= 0:
                    del pairs[pair]
                if pair != best:
                    where[pair].discard(word)
            merged: list[str] = []
            for symbol in split:
                if merged and merged[-1] == best[0] and symbol == best[1]:
                    merged[-1] = best[0] + best[1]
                else:
                    merged.append(symbol)
            splits[word] = merged
            for pair in pairwise(merged):
                pairs[pair] += words[word]
                where.setdefault(pair, set()).add(word)
        pairs.pop(best, None)
    return merges


def write_vocabulary(path: Path, n_merges: int) -> None:
    merges = train_merges(corpus(), n_merges)
    lines = [HEADER, *(" ".join(pair) for pair in merges)]
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write("\n".join(lines).encode())


class Tokenizer:
    """The same tokens as SimpleTokenizer, with a cache of words."""

    def __init__(self, path: Path) -> None:
        self.reference = SimpleTokenizer(str(path), context_length=CONTEXT_LENGTH)
        self.size = self.reference.vocab_size
        self._cache: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Tokens, cut after the longest text."""
        if len(self._cache) > 200_000:
            self._cache.clear()
        rows = []
        for text in texts:
            row = [self.reference.sot_token_id]
            for word in text.split():
                if word not in self._cache:
                    self._cache[word] = self.reference.encode(word)
                row += self._cache[word]
            rows.append([*row[: CONTEXT_LENGTH - 1], self.reference.eot_token_id])
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return tokens
