"""What a GPU computes, against the processor. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    OpenCLIP,
    PromptDetector,
    ReferenceDetector,
    SDPDetector,
    TiledDetector,
    WinCLIPDetector,
    clear_models,
)
from clipad_sklearn._cli.detectors import iter_clips
from clipad_sklearn.datasets import make_defect_images

METHODS = ["prompts", "sdp", "winclip", "references", "judged by itself", "tiles"]


@pytest.fixture(autouse=True)
def _gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(make_defect_images(32, size=64, random_state=0).images)


def fitted(method: str, images: list[np.ndarray], **settings: Any) -> Any:
    clip = OpenCLIP("tiny", embedding_cache=None, **settings)
    detector = {
        "prompts": make_pipeline(CLIPImageEncoder(clip), PromptDetector(clip)),
        "sdp": SDPDetector(clip),
        "winclip": WinCLIPDetector(clip),
        "references": ReferenceDetector(clip),
        "judged by itself": ReferenceDetector(clip, n_neighbors=0.3),
        "tiles": TiledDetector(ReferenceDetector(clip), tiles=(1, 2)),
    }[method]
    return detector.fit(images[:16])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("precision", "share"), [("fp32", 1e-3), ("auto", 0.2)])
def test_as_the_processor(
    method: str, precision: str, share: float, images: list[np.ndarray], tmp_path: Path
) -> None:
    """Differences are small beside those between images; files move both ways."""
    exact = fitted(method, images, device="cpu")
    expected = exact.score_samples(images)
    detector = fitted(method, images, precision=precision)
    atol = share * expected.std()
    np.testing.assert_allclose(detector.score_samples(images), expected, atol=atol)
    if hasattr(detector, "anomaly_maps"):
        found, maps = (d.anomaly_maps(images, size="model") for d in (detector, exact))
        np.testing.assert_allclose(found, maps, atol=share * np.std(maps))
    for one, device in ((detector, "cpu"), (exact, "cuda")):
        joblib.dump(one, tmp_path / "detector")
        moved = joblib.load(tmp_path / "detector")
        for clip in iter_clips(moved):
            clip.set_params(device=device, precision=precision)
        np.testing.assert_allclose(moved.score_samples(images), expected, atol=atol)


@pytest.mark.parametrize("method", METHODS)
def test_short_memory(method: str, images: list[np.ndarray], caplog: Any) -> None:
    import torch

    clear_models()  # with what they remember of earlier tests
    many = images * 64
    detector = fitted(method, images, precision="fp32", batch_size=len(many))
    kept = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    expected = detector.score_samples(many)
    half = (torch.cuda.max_memory_allocated() + kept) / 2
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(half / whole)
    try:
        found = detector.score_samples(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        clear_models()
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.std())
    assert "too small for" in caplog.text
