"""Write the fitted detectors that later versions must be able to load.

Run once for a version, ``python tests/data/make_saved.py``. What was written is not
written again: it stands for the files that users have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import clipad_sklearn
from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    FusionDetector,
    OpenCLIP,
    PromptDetector,
    RandomWordDetector,
    SDPDetector,
    SDPPlusDetector,
    WinCLIPDetector,
    calibrate_threshold,
)
from clipad_sklearn.datasets import make_defect_images


def detectors() -> dict[str, Any]:
    """Return one unfitted detector on embeddings of each kind."""
    network = FeedForwardClassifier((16,), n_epochs=1, random_state=0)
    words = RandomWordDetector(
        "tiny", n_pairs=200, classifier=network, center="text", random_state=0
    )
    logistic = LogisticRegression(C=10.0)
    members = [
        ("words", RandomWordDetector("tiny", n_pairs=100, classifier=logistic)),
        ("prompts", PromptDetector("tiny", prompts="clip-ac")),
    ]
    encoder = CLIPImageEncoder(OpenCLIP("tiny", batch_size=8))
    return {
        "random-word": words,
        "prompt": PromptDetector("tiny", class_name="bolt", aggregation="pca"),
        "fusion": FusionDetector(members, method="harmonic", weights=[1, 2]),
        "pipeline": make_pipeline(encoder, PromptDetector("tiny", prompts="clip-ad")),
    }


def map_detectors() -> dict[str, Any]:
    """Return one unfitted detector on images of each kind that gives maps."""
    return {
        "winclip": WinCLIPDetector("tiny", scorer=PromptDetector("tiny")),
        "sdp": SDPDetector("tiny", image_score="prompts+map", sigma=4.0),
        "sdp-plus": SDPPlusDetector(
            "tiny", layers=[5], n_epochs=1, alias_compat=True, random_state=0
        ),
    }


def on_embeddings(detector: Any) -> Any:
    """Return what comes after the encoder."""
    return detector[1:] if hasattr(detector, "steps") else detector


def main() -> None:
    folder = Path(__file__).parent / f"saved_{clipad_sklearn.__version__}"
    folder.mkdir()
    data = make_defect_images(12, size=64, random_state=0)
    embeddings = CLIPImageEncoder("tiny").fit_transform(data.images)
    expected = {}
    for name, detector in detectors().items():
        detector.fit(None)
        calibrate_threshold(on_embeddings(detector), embeddings, data.target)
        margins = on_embeddings(detector).score_samples(embeddings)
        offset = on_embeddings(detector)[-1] if name == "pipeline" else detector
        expected[name] = {"offset": offset.offset_, "margins": margins.tolist()}
        save(detector, folder / name)
    images = np.stack(data.images[:4])
    for name, detector in map_detectors().items():
        masks = data.masks[:4] if name == "sdp-plus" else None
        detector.set_params(pixel_contamination=0.1).fit(images, masks)
        calibrate_threshold(detector, images, data.target[:4])
        expected[name] = {
            "offset": detector.offset_,
            "pixel_offset": detector.pixel_offset_,
            "margins": detector.score_samples(images).tolist(),
            "maps": detector.anomaly_maps(images, size=(8, 8)).tolist(),
        }
        save(detector, folder / name)
    np.save(folder / "embeddings.npy", embeddings)
    np.save(folder / "images.npy", images)
    about = {"scikit-learn": sklearn.__version__, "expected": expected}
    (folder / "expected.json").write_text(json.dumps(about, indent=1) + "\n")


def save(detector: Any, path: Path) -> None:
    joblib.dump(detector, f"{path}.joblib", compress=3)
    skops.io.dump(detector, f"{path}.skops")


if __name__ == "__main__":
    main()
