"""A score and a map come from one pass over an image that is read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline
from slow_references import few_colours

import clipad_sklearn._clip.encoding as encoding
from clipad_sklearn import (
    CLIPImageEncoder,
    FusionDetector,
    ImageReadError,
    OpenCLIP,
    PromptDetector,
    ReferenceDetector,
    SDPDetector,
    TiledDetector,
    WinCLIPDetector,
)
from clipad_sklearn._cli.main import main
from clipad_sklearn._clip import read_once
from clipad_sklearn._clip.embedding_cache import open_cache
from clipad_sklearn._clip.models import load
from clipad_sklearn._detectors.base import BaseDetector
from clipad_sklearn._score_rows import scores_and_maps


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    found = []
    for number, photo in enumerate(few_colours(5, seed=1)):
        found.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(photo).save(found[-1])
    return found


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count decoded images, and images that go through the first layer of tiny."""
    found: Counter[str] = Counter()
    open_image = encoding.open_image

    def counted(image: Any, then: Any = None) -> Any:
        found["decoded"] += then is not None
        return open_image(image, then)

    monkeypatch.setattr(encoding, "open_image", counted)
    visual = load(OpenCLIP("tiny")).model.visual
    hook = visual.conv1.register_forward_pre_hook(
        lambda _, inputs: found.update(encoded=len(inputs[0]))
    )
    yield found
    hook.remove()


def _clip() -> OpenCLIP:
    return OpenCLIP("tiny", embedding_cache=None)


def _detector(kind: str) -> Any:
    clip = _clip()
    reference = ReferenceDetector(clip)
    sdp = SDPDetector(clip, sigma=2)
    return {
        "reference": reference,
        "winclip+": WinCLIPDetector(clip, window_sizes=(3,), references=True),
        "winclip": WinCLIPDetector(clip, window_sizes=(3,)),
        "sdp": sdp,
        "tiled": TiledDetector(reference, tiles=(1, 2)),
        "fusion": FusionDetector(
            [("photos", reference), ("words", sdp)], method="standardized"
        ),
        "nested": TiledDetector(
            FusionDetector([("photos", reference), ("words", sdp)]), tiles=(1, 2)
        ),
    }[kind]


PASSES = {"reference": 1, "winclip+": None, "winclip": None, "sdp": 2, "tiled": 3,
          "fusion": 3, "nested": None}  # fmt: skip


@pytest.mark.parametrize("kind", list(PASSES))
def test_equal_to_separate_calls(
    kind: str, paths: list[str], counts: Counter[str]
) -> None:
    detector = _detector(kind).fit(few_colours(5))
    margins = detector.score_samples(paths)
    maps = detector.anomaly_maps(paths)
    counts.clear()
    found = list(scores_and_maps(detector, detector, paths))
    assert [position for position, *_ in found] == list(range(5))
    np.testing.assert_array_equal([margin for _, margin, _, _ in found], margins)
    for (_, _, anomaly_map, _), expected in zip(found, maps, strict=True):
        np.testing.assert_array_equal(anomaly_map, expected)
    if PASSES[kind]:
        assert counts["encoded"] == 5 * PASSES[kind]
    if kind not in ("tiled", "nested"):  # which read tiles elsewhere
        assert counts["decoded"] == 5


def test_maps_of_one_member(paths: list[str], counts: Counter[str]) -> None:
    """As of good photos fused with words: the map is that of the first."""
    clip = OpenCLIP("tiny")  # whose embeddings come from the pass for patches
    words = make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip))
    members = [("photos", ReferenceDetector(clip)), ("words", words)]
    detector = FusionDetector(members, method="standardized").fit(few_colours(5))
    open_cache("memory").clear()
    counts.clear()
    mapper = detector.named_detectors_["photos"]
    found = list(scores_and_maps(detector, mapper, paths))
    assert counts == {"decoded": 5, "encoded": 5}
    margins = detector.score_samples(paths)
    np.testing.assert_array_equal([margin for _, margin, _, _ in found], margins)
    for (_, _, anomaly_map, _), expected in zip(
        found, mapper.anomaly_maps(paths), strict=True
    ):
        np.testing.assert_array_equal(anomaly_map, expected)


def test_unreadable_images(
    paths: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(read_once, "_GROUP", 2)
    clip = OpenCLIP("tiny", embedding_cache=None, batch_size=2)
    members = [("a", SDPDetector(clip, sigma=2)), ("b", ReferenceDetector(clip))]
    fusion = FusionDetector(members).fit(few_colours(5))
    margins = fusion.score_samples(paths)
    images = [*paths[:3], "missing.png", *paths[3:], str(tmp_path), "gone.png"]
    for method in fusion.score_samples, fusion.anomaly_maps:
        with pytest.raises(ImageReadError) as error:
            method(images)
        assert [position for position, _, _ in error.value.failures] == [3, 6, 7]
    found = sorted(scores_and_maps(fusion, fusion, images), key=lambda row: row[0])
    scores = np.array([margin for _, margin, _, _ in found])
    assert np.flatnonzero(np.isnan(scores)).tolist() == [3, 6, 7]
    np.testing.assert_allclose(scores[np.isfinite(scores)], margins, rtol=1e-3)
    assert found[3][2:] == (None, "no such file")
    assert sum(anomaly_map is not None for _, _, anomaly_map, _ in found) == 5


def test_names_reach_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_once, "_GROUP", 2)
    clip = OpenCLIP("tiny", batch_size=2)
    sdp = SDPDetector(clip, sigma=2).fit()
    fusion = FusionDetector([("a", SDPDetector(clip, sigma=2))]).fit()
    photos, names = few_colours(5), ["nut", "bolt", "nut", "cup", "nut"]
    np.testing.assert_allclose(
        fusion.score_samples(photos, class_name=names),
        sdp.score_samples(photos, class_name=names),
        rtol=1e-4,
    )
    with pytest.raises(ValueError, match="was given for 4 images"):
        fusion.score_samples(photos, class_name=names[:4])


class Brightness(BaseDetector):
    """A detector of somebody else, who knows of no images that are read once."""

    contamination = "auto"

    def fit(self, X: Any = None, y: Any = None) -> Brightness:
        self._set_offset(X)
        return self

    def _margins(self, X: Any) -> np.ndarray:
        return np.array([np.asarray(Image.open(path)).mean() / 100 for path in X])

    def iter_anomaly_maps(self, X: Any, size: Any = "image") -> list[np.ndarray]:
        return [np.asarray(Image.open(path).convert("L")) / 255 for path in X]


def test_others_get_images_as_given(paths: list[str]) -> None:
    other = Brightness().fit()
    found = list(scores_and_maps(other, other, paths))
    assert [margin for _, margin, _, _ in found] == other.score_samples(paths).tolist()
    fusion = FusionDetector([("sdp", SDPDetector("tiny")), ("other", other)])
    assert np.isfinite(fusion.fit().score_samples(paths)).all()


def test_the_command(paths: list[str], tmp_path: Path, counts: Counter[str]) -> None:
    """Scores, maps and the heat maps of the page: one pass, and one more read."""
    good = tmp_path / "good"
    good.mkdir()
    for number, photo in enumerate(few_colours(5)):
        Image.fromarray(photo).save(good / f"{number}.png")
    maps, page, table = (str(tmp_path / name) for name in ("maps", "p.html", "t.csv"))
    arguments = ["score", *paths, "--good", str(good), "--clip", "tiny", "--no-cache"]
    assert main([*arguments, "--maps", maps, "--report", page, "--out", table]) == 0
    assert counts["encoded"] == 10  # the good ones and the others
    assert counts["decoded"] == 10  # the overlays are drawn from files elsewhere
    plain = str(tmp_path / "plain.csv")
    assert main([*arguments, "--out", plain]) == 0
    assert Path(plain).read_text() == Path(table).read_text()
