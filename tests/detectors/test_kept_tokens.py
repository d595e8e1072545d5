"""Tokens of references are kept from run to run."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipad_sklearn import OpenCLIP, ReferenceDetector, TiledDetector
from clipad_sklearn._clip.embedding_cache import open_cache
from clipad_sklearn._clip.patch_tokens import PatchTower
from clipad_sklearn._detectors import kept_tokens
from clipad_sklearn._detectors.kept_tokens import _content
from clipad_sklearn.datasets import make_defect_images

pytestmark = [
    pytest.mark.usefixtures("on_processor"),
    pytest.mark.filterwarnings("ignore:Fewer than 8 references:UserWarning"),
]


@pytest.fixture(scope="module")
def good() -> list[Any]:
    return list(make_defect_images(20, size=64, random_state=0).images[::2])


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that went through the tower for their tokens."""
    numbers: list[int] = []
    encode = PatchTower.encode

    def counted(self: PatchTower, pixels: Any, blocks: Any) -> Any:
        numbers.append(len(pixels))
        return encode(self, pixels, blocks)

    monkeypatch.setattr(PatchTower, "encode", counted)
    return numbers


def fitted(folder: Path | str, images: list[Any], **params: Any) -> Any:
    clip = OpenCLIP("tiny", embedding_cache=str(folder))
    return ReferenceDetector(clip, **params).fit(images)


@pytest.mark.parametrize("params", [{}, {"orientations": 4}, {"max_patches": 50}])
def test_a_second_fit_encodes_nothing(
    params: dict[str, Any], good: list[Any], tmp_path: Path, encoded: list[int]
) -> None:
    if "max_patches" in params:
        params = {**params, "location": "anywhere", "random_state": 0}
    first = fitted(tmp_path, good, **params)
    encoded.clear()
    second = fitted(tmp_path, good, **params)
    assert not encoded
    for name, value in vars(first).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(second, name), value)
    np.testing.assert_array_equal(second.score_samples(good), first.score_samples(good))


def test_only_new_photos_are_encoded(
    good: list[Any], tmp_path: Path, encoded: list[int]
) -> None:
    fitted(tmp_path, good[:4])
    encoded.clear()
    some = fitted(tmp_path, good)
    assert encoded == [6]
    whole = fitted("memory", good)
    np.testing.assert_allclose(
        some.score_samples(good), whole.score_samples(good), atol=1e-4
    )


@pytest.mark.parametrize(
    ("folder", "params"),
    [
        ("cache", {"layers": (2, 5)}),
        ("cache", {"orientations": 4}),
        ("cache", {"n_neighbors": 0.3}),  # a folder that judges itself
        ("memory", {}),
    ],
)
def test_what_is_made_otherwise_is_encoded(
    folder: str, params: Any, good: list[Any], tmp_path: Path, encoded: list[int]
) -> None:
    fitted(tmp_path / "cache", good)
    for _ in range(2):
        encoded.clear()
        fitted(folder if folder == "memory" else tmp_path / folder, good, **params)
        if folder == "cache" and "n_neighbors" not in params:
            break
    assert sum(encoded) == len(good) * params.get("orientations", 1)


def test_tiles(good: list[Any], tmp_path: Path, encoded: list[int]) -> None:
    def tiled() -> Any:
        clip = OpenCLIP("tiny", embedding_cache=str(tmp_path))
        return TiledDetector(ReferenceDetector(clip), tiles=(1, 2)).fit(good)

    first = tiled()
    encoded.clear()
    second = tiled()
    assert not encoded
    np.testing.assert_array_equal(second.score_samples(good), first.score_samples(good))


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        b"PK\x03\x04",
        archive(),
        _content([np.zeros((1, 2, 3, 4), np.float16)]),  # of another shape
        _content([np.zeros((1, 8, 8, 256))] * 3),  # of another kind
    ],
)
def test_an_entry_of_something_else_is_none(
    content: bytes, good: list[Any], tmp_path: Path, encoded: list[int]
) -> None:
    """Whoever may write to the folder: nothing is run, and nothing waits."""
    expected = fitted(tmp_path, good).score_samples(good)
    cache: Any = open_cache(str(tmp_path))
    with patched_blocks(content):
        cache.clear()
        fitted(tmp_path, good)
    encoded.clear()
    np.testing.assert_array_equal(fitted(tmp_path, good).score_samples(good), expected)
    assert encoded[0] == len(good)


@contextlib.contextmanager
def patched_blocks(content: bytes) -> Iterator[None]:
    """What is kept is something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_tokens, "_content", lambda blocks: content)
        yield


def test_damaged_entries(good: list[Any], tmp_path: Path, encoded: list[int]) -> None:
    expected = fitted(tmp_path, good).score_samples(good)
    cache: Any = open_cache(str(tmp_path))
    connection = cache._open()
    connection.execute("UPDATE embedding SET value = x'00' WHERE length(value) > 10000")
    connection.commit()
    encoded.clear()
    np.testing.assert_array_equal(fitted(tmp_path, good).score_samples(good), expected)
    assert encoded[0] == len(good)
