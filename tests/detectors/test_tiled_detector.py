"""Large images, looked at tile by tile."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    ImageReadError,
    OpenCLIP,
    PromptDetector,
    ReferenceDetector,
    SDPDetector,
    TiledDetector,
    WinCLIPDetector,
    calibrate_threshold,
)


def prompts(clip: Any = "tiny") -> Any:
    return make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip))


def image_detectors() -> list[Any]:
    return [prompts(), SDPDetector("tiny"), WinCLIPDetector("tiny", window_sizes=(3,))]


@pytest.fixture(scope="module")
def large() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(160, 240, 3), (240, 160, 3), (90, 300, 3), (200, 200, 3)]
    return [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]


@pytest.mark.parametrize(
    "detector", image_detectors(), ids=lambda detector: type(detector).__name__
)
@pytest.mark.parametrize("tiles", [{"tiles": (1, 1)}, {"tile_size": 300}])
def test_one_tile_is_the_detector_to_the_bit(
    detector: Any, tiles: dict[str, Any], large: list[np.ndarray]
) -> None:
    tiled = TiledDetector(detector, **tiles).fit()
    alone = clone(detector).fit(None)
    np.testing.assert_array_equal(
        tiled.score_samples(large), alone.score_samples(large)
    )
    if hasattr(alone, "anomaly_maps"):
        for size in ("image", "model", (20, 30)):
            for ours, its in zip(
                tiled.anomaly_maps(large, size=size),
                alone.anomaly_maps(large, size=size),
                strict=True,
            ):
                np.testing.assert_array_equal(ours, its)


@pytest.mark.parametrize("whole", [True, False])
def test_the_lowest_margin_of_crops_made_by_hand(
    whole: bool, large: list[np.ndarray]
) -> None:
    tiled = TiledDetector(prompts(), tiles=(2, 3), whole=whole).fit()
    alone = prompts().fit(None)
    for image, scores in zip(large, tiled.tile_scores(large), strict=True):
        crops = [image[t:b, x:r] for t, x, b, r in tiled.tile_boxes(image.shape[:2])]
        expected = alone.score_samples([*crops, image] if whole else crops)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    lowest = [scores.min() for scores in tiled.tile_scores(large)]
    np.testing.assert_array_equal(tiled.score_samples(large), lowest)


def test_maps_of_crops_made_by_hand(large: list[np.ndarray]) -> None:
    tiled = TiledDetector(SDPDetector("tiny"), tiles=(1, 2), whole=True).fit()
    alone = SDPDetector("tiny").fit()
    image = large[0]
    (_, _, _, end), (_, start, _, _) = tiled.tile_boxes(image.shape[:2])
    left, right = alone.anomaly_maps([image[:, :end], image[:, start:]])
    whole = alone.anomaly_maps([image])[0]
    found = tiled.anomaly_maps([image])[0]
    assert found.shape == image.shape[:2]
    np.testing.assert_allclose(
        found[:, :start], np.maximum(left[:, :start], whole[:, :start]), atol=1e-5
    )
    np.testing.assert_allclose(
        found[:, end:], np.maximum(right[:, end - start :], whole[:, end:]), atol=1e-5
    )


class Constant(WinCLIPDetector):
    """Its maps are the same everywhere."""

    def _model_maps(self, pixels: Any, class_names: Any) -> np.ndarray:
        return np.full((len(pixels), 112, 112), 0.7, np.float32)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_a_constant_map_stays_constant(overlap: float, large: list[np.ndarray]) -> None:
    tiled = TiledDetector(Constant("tiny"), tiles=(3, 2), overlap=overlap).fit()
    for anomaly_map in tiled.anomaly_maps(large):
        np.testing.assert_allclose(anomaly_map, 0.7, rtol=1e-6)


def test_extreme_shapes_and_photos_smaller_than_a_tile() -> None:
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, shape, dtype=np.uint8)
        for shape in [(200, 5000), (40, 60), (3, 2), (1, 1), (5000, 20)]
    ]
    tiled = TiledDetector(SDPDetector("tiny"), tile_size=400).fit()
    counts = [len(scores) for scores in tiled.tile_scores(images)]
    assert counts == [18, 1, 1, 1, 18]
    shapes = [anomaly_map.shape for anomaly_map in tiled.anomaly_maps(images)]
    assert shapes == [image.shape for image in images]
    grid = TiledDetector(prompts(), tiles=(1, 4)).fit()
    assert np.isfinite(grid.score_samples(images)).all()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_batches_order_and_company_change_nothing(
    batch_size: int, large: list[np.ndarray]
) -> None:
    clip = OpenCLIP("tiny", batch_size=batch_size, embedding_cache=None)
    tiled = TiledDetector(prompts(clip), tile_size=(100, 120)).fit()
    expected = [tiled.score_samples([image])[0] for image in large]
    np.testing.assert_allclose(tiled.score_samples(large), expected, atol=1e-4)
    backwards = tiled.score_samples(large[::-1])[::-1]
    np.testing.assert_allclose(backwards, expected, atol=1e-4)


def test_every_image_is_opened_once(
    tmp_path: Path, large: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipad_sklearn._detectors import tiles

    paths = [str(tmp_path / f"{i}.png") for i in range(len(large))]
    for path, image in zip(paths, large, strict=True):
        Image.fromarray(image).save(path)
    opened: list[Any] = []
    real = tiles.open_image
    monkeypatch.setattr(
        tiles, "open_image", lambda image: opened.append(image) or real(image)
    )
    tiled = TiledDetector(SDPDetector("tiny"), tiles=(2, 2)).fit()
    from_files = tiled.score_samples(paths)
    assert opened == paths
    list(tiled.iter_anomaly_maps(paths))
    assert opened == paths * 2
    monkeypatch.undo()
    np.testing.assert_allclose(from_files, tiled.score_samples(large), atol=1e-5)


def test_turned_by_exif(tmp_path: Path, large: list[np.ndarray]) -> None:
    image = Image.fromarray(large[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    tiled = TiledDetector(SDPDetector("tiny"), tile_size=(130, 100)).fit()
    found = tiled.anomaly_maps([tmp_path / "turned.png"])[0]
    assert found.shape == (240, 160)
    upright = np.rot90(large[0], -1)
    np.testing.assert_allclose(found, tiled.anomaly_maps([upright])[0], atol=1e-5)


@pytest.mark.parametrize("geometry", [{"tiles": (2, 2)}, {"tile_size": 90}])
def test_unreadable_images_are_named_once(
    geometry: dict[str, Any], large: list[np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    images = [large[0], "missing.png", large[1], str(tmp_path / "broken.png")]
    tiled = TiledDetector(SDPDetector("tiny"), **geometry).fit()
    for use in (tiled.score_samples, tiled.anomaly_maps, tiled.fit):
        if use == tiled.fit:
            tiled.set_params(contamination=0.5)
        with pytest.raises(ImageReadError) as error:
            use(images)
        assert [failure[0] for failure in error.value.failures] == [1, 3]
        assert "missing.png" in str(error.value)


def test_threshold_is_its_own(large: list[np.ndarray]) -> None:
    detector = prompts()
    detector[-1].set_params(contamination=0.5)
    tiled = TiledDetector(detector, contamination=0.25).fit(large)
    assert (tiled.predict(large) == -1).sum() == 1
    calibrate_threshold(tiled, large, [1, 1, 0, 1])
    assert tiled.detector_[-1].offset_ != tiled.offset_


def test_threshold_of_the_detector_plays_no_role() -> None:
    detector = SDPDetector("tiny", contamination=0.1, pixel_contamination=0.1)
    tiled = TiledDetector(detector).fit()
    assert tiled.offset_ == 0
    assert tiled.get_params()["detector__contamination"] == 0.1


def test_threshold_of_maps(large: list[np.ndarray]) -> None:
    tiled = TiledDetector(SDPDetector("tiny"), pixel_contamination=0.1).fit(large)
    masks = tiled.predict_masks(large)
    share = sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
    assert share == pytest.approx(0.1, abs=0.002)


def test_class_names_reach_every_tile(large: list[np.ndarray]) -> None:
    tiled = TiledDetector(SDPDetector("tiny"), tiles=(1, 2)).fit()
    names = ["nut", "paper", "nut", "bolt"]
    together = tiled.score_samples(large, class_name=names)
    for image, name, expected in zip(large, names, together, strict=True):
        one = tiled.score_samples([image], class_name=name)[0]
        assert one == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="given for 2 images, but X has 4"):
        tiled.score_samples(large, class_name=["nut", "paper"])


def test_frozen_and_pickled(large: list[np.ndarray]) -> None:
    fitted = SDPDetector("tiny").fit(class_name="paper")
    tiled = TiledDetector(FrozenEstimator(fitted), tiles=(1, 2)).fit(large)
    again = pickle.loads(pickle.dumps(tiled))
    np.testing.assert_array_equal(
        again.score_samples(large), tiled.score_samples(large)
    )
    assert again.anomaly_maps(large[:1])[0].shape == large[0].shape[:2]


def test_no_maps_where_the_detector_has_none() -> None:
    tiled = TiledDetector(prompts()).fit()
    assert not hasattr(tiled, "anomaly_maps")
    with pytest.raises(AttributeError) as error:
        tiled.anomaly_maps([])
    assert "because its detector has none" in str(error.value.__cause__)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"tiles": (2, 2), "tile_size": 9}, "expected one of them"),
        ({"tiles": 3}, r"tiles=3: expected \(rows, columns\)"),
        ({"tiles": (0, 2)}, "of at least 1 each"),
        ({"tiles": "22"}, "tiles='22': expected"),
        ({"tile_size": (9.5, 2)}, "tile_size=.* expected pixels"),
        ({"tile_size": 0}, "of at least 1 each"),
        ({"overlap": 1}, "overlap=1: expected a number in"),
        ({"overlap": True}, "overlap=True: expected a number"),
        ({"contamination": 0.1}, "but X is None"),
        ({"pixel_contamination": 0.1}, "but X is None"),
        ({"detector": CLIPImageEncoder("tiny")}, "expected a detector on images"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    tiled = TiledDetector(**{"detector": SDPDetector("tiny"), **params})
    with pytest.raises(ValueError, match=message):
        tiled.fit()


@pytest.fixture(scope="module")
def pages() -> list[np.ndarray]:
    """Noise of one kind, (200, 300) pixels each, the last one with a small spot."""
    rng = np.random.default_rng(1)
    images = [
        np.repeat(rng.normal(150, 4, (200, 300, 1)), 3, axis=2).round().astype(np.uint8)
        for _ in range(8)
    ]
    images[-1][110:116, 200:206] = 0
    return images


class TestReferences:
    """A photo is one reference, with all its tiles."""

    @pytest.mark.parametrize("location", ["both", "same", "anywhere"])
    def test_against_plain_loops(self, location: str, pages: list[np.ndarray]) -> None:
        """Margins from features of crops, with one loop for each thing."""
        params: dict[str, Any] = {"location": location, "layers": [3]}
        tiled = TiledDetector(ReferenceDetector("tiny", **params), tiles=(1, 2))
        tiled.fit(pages[:5])

        def features(image: np.ndarray) -> list[np.ndarray]:
            boxes = tiled.tile_boxes(image.shape[:2])
            views = [image[t:b, x:r] for t, x, b, r in boxes] + [image]
            # The tokens of a plain detector, which are tested for themselves.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tokens = ReferenceDetector("tiny", **params).fit(views)
            rows = tokens.reference_tokens_[0][:, 0].astype(np.float64)
            rows = rows.reshape(len(views), -1, rows.shape[-1])
            return list(rows / np.linalg.norm(rows, axis=-1, keepdims=True))

        references = [features(image) for image in pages[:5]]

        def scores(image: list[np.ndarray], others: list[Any]) -> np.ndarray:
            """Highest patch distance of all views, at each place."""
            found = []
            for view, patches in enumerate(image):
                anywhere, same = [], []
                for other in others:
                    far = [patches @ tile.T for tile in other]
                    anywhere.append(np.max([c.max(axis=1) for c in far], axis=0))
                    same.append((patches * other[view]).sum(axis=1))
                nearest = {
                    "anywhere": np.max(anywhere, axis=0),
                    "same": np.max(same, axis=0),
                }
                places = ("anywhere", "same") if location == "both" else (location,)
                found.append(
                    [np.sqrt(2 - 2 * nearest[place].min()) for place in places]
                )
            return np.max(found, axis=0)

        own = np.array(
            [scores(r, references[:i] + references[i + 1 :])
             for i, r in enumerate(references)]
        )  # fmt: skip

        def scale(values: np.ndarray) -> tuple[float, float]:
            center, low = np.quantile(values, [0.5, 0.16])
            return center, max(center - low, 0.01 * abs(center) + 1e-3)

        scales = [scale(column) for column in own.T]

        def deviations(rows: np.ndarray) -> np.ndarray:
            return np.array([(r - [c for c, _ in scales]) / [s for _, s in scales]
                             for r in rows]).max(axis=1)  # fmt: skip

        z = deviations(own)
        new = deviations(np.array([scores(features(pages[-1]), references)]))
        if location == "both":
            center, spread = scale(z)
            z, new = (z - center) / spread, (new - center) / spread
        np.testing.assert_allclose(tiled.score_samples(pages[:5]), 3 - z, atol=0.02)
        margin = tiled.score_samples(pages[-1:])
        np.testing.assert_allclose(margin, 3 - new, rtol=1e-3, atol=0.02)

    @pytest.mark.parametrize("location", ["both", "anywhere"])
    def test_a_small_spot(self, location: str, pages: list[np.ndarray]) -> None:
        detector = ReferenceDetector("tiny", location=location)
        tiled = TiledDetector(detector, tiles=(2, 3)).fit(pages[:6])
        assert tiled.predict(pages[-1:]) == -1
        boxes = tiled.tile_boxes((200, 300))
        top, left, bottom, right = boxes[int(np.argmin(tiled.tile_scores(pages)[-1]))]
        assert top <= 110 < bottom
        assert left <= 200 < right
        peak = np.unravel_index(
            np.argmax(tiled.anomaly_maps(pages[-1:])[0]), (200, 300)
        )
        assert np.abs(np.array(peak) - (113, 203)).max() < 25

    def test_a_reference_is_never_compared_with_itself(
        self, pages: list[np.ndarray]
    ) -> None:
        params = {"tiles": (1, 2), "contamination": 0.4}
        tiled = TiledDetector(ReferenceDetector("tiny"), **params)
        together = tiled.fit_predict(pages[:5])
        assert (together == -1).sum() == 2
        np.testing.assert_array_equal(tiled.predict(pages[:5]), together)
        margins = tiled.score_samples(pages[4::-1])[::-1]
        np.testing.assert_array_equal(margins, tiled.detector_.reference_scores_)
        assert tiled.is_reference(pages[3:7]).tolist() == [True, True, False, False]
        with pytest.warns(UserWarning, match="are references of the detector"):
            calibrate_threshold(tiled, pages[:5], max_false_alarm=0.2)

    def test_one_tile_is_the_detector(self, pages: list[np.ndarray]) -> None:
        tiled = TiledDetector(ReferenceDetector("tiny"), tiles=(1, 1)).fit(pages[:5])
        alone = ReferenceDetector("tiny").fit(pages[:5])
        np.testing.assert_array_equal(
            tiled.score_samples(pages), alone.score_samples(pages)
        )

    def test_sizes_that_differ(self, pages: list[np.ndarray]) -> None:
        cut = [page[: 200 - 40 * (i % 3)] for i, page in enumerate(pages)]
        detector = ReferenceDetector("tiny", location="anywhere")
        tiled = TiledDetector(detector, tile_size=120).fit(cut[:6])
        assert np.isfinite(tiled.score_samples(cut)).all()
        tiled.set_params(detector__location="both")
        with pytest.raises(ValueError, match="expected 'anywhere' for tiles of photos"):
            tiled.fit(cut[:6])
        tiled.fit(pages[:5])
        with pytest.raises(ValueError, match="compares tile with tile"):
            tiled.score_samples(cut[2:3])

    def test_turned_references(self, pages: list[np.ndarray]) -> None:
        square = [page[:, :200] for page in pages]
        detector = ReferenceDetector("tiny", orientations=4, location="anywhere")
        tiled = TiledDetector(detector, tiles=(1, 2), overlap=0).fit(square[:5])
        tokens = tiled.detector_.reference_tokens_[0]
        assert tokens.shape[:2] == (5, 4 * 3)
        assert np.isfinite(tiled.score_samples(square)).all()

    def test_one_photo_is_too_few(self, pages: list[np.ndarray]) -> None:
        with pytest.raises(ValueError, match="at least 2 photos"):
            TiledDetector(ReferenceDetector("tiny")).fit(pages[:1])
