"""Zero-shot visual anomaly detection with CLIP, as scikit-learn estimators."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._calibration import calibrate_threshold
    from ._clip import OpenCLIP, WeightsNotFound, clear_models
    from ._feed_forward_classifier import FeedForwardClassifier
    from ._fusion_detector import FusionDetector
    from ._image_encoder import CLIPImageEncoder
    from ._images import ImageReadError, list_images
    from ._prompt_detector import PromptDetector
    from ._prompts import PromptSet, random_word_prompts
    from ._random_word_detector import RandomWordDetector
    from ._score_images import score_images
    from ._sdp_detector import SDPDetector
    from ._sdp_plus_detector import SDPPlusDetector
    from ._winclip_detector import WinCLIPDetector

__version__ = "0.1.0"

# Public name -> module. Importing the package costs none of them.
_MODULES = {
    "CLIPImageEncoder": "_image_encoder",
    "FeedForwardClassifier": "_feed_forward_classifier",
    "FusionDetector": "_fusion_detector",
    "ImageReadError": "_images",
    "OpenCLIP": "_clip",
    "PromptDetector": "_prompt_detector",
    "PromptSet": "_prompts",
    "RandomWordDetector": "_random_word_detector",
    "SDPDetector": "_sdp_detector",
    "SDPPlusDetector": "_sdp_plus_detector",
    "WeightsNotFound": "_clip",
    "WinCLIPDetector": "_winclip_detector",
    "calibrate_threshold": "_calibration",
    "clear_models": "_clip",
    "list_images": "_images",
    "random_word_prompts": "_prompts",
    "score_images": "_score_images",
}
_SUBMODULES = ("datasets", "metrics", "model_selection", "plotting")

__all__ = [
    "CLIPImageEncoder",
    "FeedForwardClassifier",
    "FusionDetector",
    "ImageReadError",
    "OpenCLIP",
    "PromptDetector",
    "PromptSet",
    "RandomWordDetector",
    "SDPDetector",
    "SDPPlusDetector",
    "WeightsNotFound",
    "WinCLIPDetector",
    "calibrate_threshold",
    "clear_models",
    "list_images",
    "random_word_prompts",
    "score_images",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
