"""`max_patches`: references thinned to patches that lie far from each other."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from slow_references import farthest, features, few_colours, nearest_kept

from clipad_sklearn import OpenCLIP, ReferenceDetector, TiledDetector
from clipad_sklearn._detectors import patch_distances
from clipad_sklearn._detectors.patch_distances import PatchMatcher
from clipad_sklearn._detectors.patch_memory import ThinnedMatcher, thinned


def _tokens(n: int, orientations: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, orientations, 3, 4, 8, generator=generator).half()


def _squares(scores: Any) -> np.ndarray:
    return np.asarray(scores, dtype=np.float64) ** 2 / 2


@pytest.mark.parametrize("block", [2**23, 1])
@pytest.mark.parametrize("orientations", [1, 4])
def test_equals_plain_loops(
    orientations: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_distances, "LARGEST_BLOCK", block)
    references = [_tokens(4, orientations, seed) for seed in (0, 1)]
    queries = [_tokens(2, 1, seed)[:, 0] for seed in (2, 3)]
    order, sides = [2, 0, 3, 1], (1, 3)
    kept = thinned(references, sides, 15, order)
    matcher = ThinnedMatcher(kept, sides)
    found = matcher.scores(queries)
    left_out = matcher.one_by_one([tokens[:, 0] for tokens in references], 3)
    assert found.shape == (1, 2, 3, 4)
    assert left_out.shape == (1, 4, 3, 4)
    expected, alone = np.zeros((2, 3, 4)), np.zeros((4, 3, 4))
    for tokens, photos in zip(references, queries, strict=True):
        for side in sides:
            patches, owners = farthest(tokens.numpy(), side, 15, order)
            for i in range(2):
                own = features(photos[i].numpy(), side)
                expected[i] += nearest_kept(own, patches, owners, None) / 4
            for i in range(4):
                own = features(tokens[i, 0].numpy(), side)
                alone[i] += nearest_kept(own, patches, owners, i) / 4
    np.testing.assert_allclose(_squares(found[0]), _squares(expected), atol=1e-3)
    np.testing.assert_allclose(_squares(left_out[0]), _squares(alone), atol=1e-3)


def test_all_patches_are_the_plain_matcher() -> None:
    references, queries = _tokens(5, 2), _tokens(2, seed=1)[:, 0]
    plain = PatchMatcher([references], (1,), ("anywhere",), 0, 1)
    whole = ThinnedMatcher(thinned([references], (1,), 1000, range(5)), (1,))
    np.testing.assert_allclose(
        _squares(whole.scores([queries])), _squares(plain.scores([queries])), atol=1e-5
    )
    np.testing.assert_allclose(
        _squares(whole.one_by_one([references[:, 0]], 2)),
        _squares(plain.leave_one_out(2)),
        atol=1e-5,
    )


def test_kept_patches_cover_all_others() -> None:
    """Twice the best radius at most; here copies of few patches are all covered."""
    few = torch.nn.functional.normalize(torch.randn(6, 8), dim=-1)
    numbers = torch.arange(4 * 12) % 6
    references = few[numbers].view(4, 1, 3, 4, 8).half()
    matcher = ThinnedMatcher(thinned([references], (1,), 6, range(4)), (1,))
    assert matcher.scores([references[:, 0]]).max() == 0


# -- the detector ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def good() -> list[np.ndarray]:
    return few_colours(7)


def _detector(clip: Any = "tiny", **parameters: Any) -> ReferenceDetector:
    settings = {"location": "anywhere", "layers": [6], "random_state": 0}
    return ReferenceDetector(clip, **settings | parameters)


def test_detector(good: list[Any]) -> None:
    X = few_colours(3, seed=1)
    whole = _detector().fit(good)
    one = _detector(max_patches=100, contamination=0.3)
    verdicts = one.fit_predict(good)
    assert [x.shape for x in one.reference_tokens_] == [(100, 192)]
    assert [x.shape for x in one.reference_owners_] == [(100,)]
    assert len(pickle.dumps(one)) < len(pickle.dumps(whole)) / 2
    np.testing.assert_array_equal(one.predict(good), verdicts)
    np.testing.assert_array_equal(one.score_samples(good), one.reference_scores_)
    # No patch is nearer than among all of them.
    far, near = (next(d._iter_patch_scores(X))[0] for d in (one, whole))
    assert (far >= near - 1e-4).all()
    assert len(one.anomaly_maps(X)) == 3
    again = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(again.score_samples(X), one.score_samples(X))
    # All patches kept are all patches.
    same = _detector(max_patches=10_000).fit(good)
    np.testing.assert_allclose(same.score_samples(X), whole.score_samples(X), atol=1e-3)
    one.set_params(max_patches=None, contamination="auto").fit(good)
    assert not hasattr(one, "reference_owners_")
    np.testing.assert_array_equal(one.score_samples(X), whole.score_samples(X))


def test_order_and_seed(good: list[Any]) -> None:
    def kept(photos: list[Any], **parameters: Any) -> set[bytes]:
        detector = _detector(max_patches=30, **parameters).fit(photos)
        return {patch.tobytes() for patch in detector.reference_tokens_[0]}

    expected = kept(good)
    assert kept(good[::-1]) == expected
    assert kept(good, random_state=1) != expected
    # Rounding may differ between sizes of batches, and with it a few patches.
    other = _detector(OpenCLIP("tiny", batch_size=2), max_patches=200).fit(good)
    one = _detector(max_patches=200).fit(good)
    np.testing.assert_allclose(other.reference_scores_, one.reference_scores_, atol=0.5)


def test_tiles(good: list[Any]) -> None:
    tiled = TiledDetector(_detector(max_patches=60), tiles=(1, 2)).fit(good[:4])
    inner = tiled.detector_
    assert inner.reference_tokens_[0].shape == (60, 192)
    np.testing.assert_allclose(
        np.sort(tiled.score_samples(good[:4])), np.sort(inner.reference_scores_)
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"location": "both"}, "location='both': expected 'anywhere' with max_patches"),
        ({"location": "same"}, "location='same': expected 'anywhere'"),
        ({"n_neighbors": 0.5}, "n_neighbors=0.5: expected 1 with max_patches"),
        ({"n_neighbors": 1.0}, r"n_neighbors=1\.0: expected 1"),
        ({"n_neighbors": 2}, "n_neighbors=2: expected 1"),
        ({"max_patches": 1}, "^max_patches=1: expected None or an integer >= 2"),
        ({"max_patches": 2.5}, r"^max_patches=2\.5: expected"),
    ],
)
def test_what_it_does_not_go_with(
    parameters: Any, message: str, good: list[Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        _detector(**{"max_patches": 20, **parameters}).fit(good)


def test_partial_fit(good: list[Any]) -> None:
    detector = _detector(max_patches=50)
    with pytest.raises(ValueError, match="max_patches=50: partial_fit would need"):
        detector.partial_fit(good)
    detector.fit(good).set_params(max_patches=None)
    with pytest.raises(ValueError, match="fit all photos at once"):
        detector.partial_fit(good)


def test_settings_changed_after_fit(good: list[Any]) -> None:
    detector = _detector(max_patches=50).fit(good)
    with pytest.raises(ValueError, match="location='same': expected 'anywhere'"):
        detector.set_params(location="same").score_samples(few_colours(1, seed=1))
    detector.set_params(location="anywhere", neighborhoods=(1, 3))
    with pytest.raises(ValueError, match="was set after fit"):
        detector.score_samples(few_colours(1, seed=1))


def test_patches_of_one_photo_only(good: list[Any]) -> None:
    """Begun in the only photo that is not flat, the farthest patch is in it too."""
    flat = [np.full((40, 48, 3), 90 + i, np.uint8) for i in range(4)]
    messages = set()
    for seed in range(8):
        detector = _detector(max_patches=2, random_state=seed)
        try:
            detector.fit([good[0], *flat[1:]])
        except ValueError as error:
            messages.add(str(error))
    assert len(messages) == 1
    assert "max_patches=2 keeps patches of a single photo" in messages.pop()
