"""Zero-shot visual anomaly detection with CLIP, as scikit-learn estimators."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import datasets as datasets
    from . import metrics as metrics
    from . import model_selection as model_selection
    from . import plotting as plotting
    from ._clip.image_encoder import CLIPImageEncoder
    from ._clip.models import clear_models
    from ._clip.settings import OpenCLIP
    from ._detectors.calibrated_threshold import CalibratedThresholdDetector
    from ._detectors.calibration import calibrate_threshold
    from ._detectors.damage_direction import DamageDirectionDetector
    from ._detectors.feed_forward import FeedForwardClassifier
    from ._detectors.fusion import FusionDetector
    from ._detectors.prompt import PromptDetector
    from ._detectors.random_word import RandomWordDetector
    from ._detectors.reference import ReferenceDetector
    from ._detectors.regions import anomaly_regions
    from ._detectors.sdp import SDPDetector
    from ._detectors.sdp_plus import SDPPlusDetector
    from ._detectors.tiled import TiledDetector
    from ._detectors.winclip import WinCLIPDetector
    from ._errors import ImageReadError, WeightsNotFound
    from ._images import list_images
    from ._prompts import PromptSet, random_word_prompts
    from ._score_images import score_images

from ._version import __version__ as __version__

# Public name -> module. Importing the package costs none of them.
_MODULES = {
    "CalibratedThresholdDetector": "_detectors.calibrated_threshold",
    "CLIPImageEncoder": "_clip.image_encoder",
    "DamageDirectionDetector": "_detectors.damage_direction",
    "FeedForwardClassifier": "_detectors.feed_forward",
    "FusionDetector": "_detectors.fusion",
    "ImageReadError": "_errors",
    "OpenCLIP": "_clip.settings",
    "PromptDetector": "_detectors.prompt",
    "PromptSet": "_prompts",
    "RandomWordDetector": "_detectors.random_word",
    "ReferenceDetector": "_detectors.reference",
    "SDPDetector": "_detectors.sdp",
    "SDPPlusDetector": "_detectors.sdp_plus",
    "TiledDetector": "_detectors.tiled",
    "WeightsNotFound": "_errors",
    "WinCLIPDetector": "_detectors.winclip",
    "anomaly_regions": "_detectors.regions",
    "calibrate_threshold": "_detectors.calibration",
    "clear_models": "_clip.models",
    "list_images": "_images",
    "random_word_prompts": "_prompts",
    "score_images": "_score_images",
}
_SUBMODULES = ("datasets", "metrics", "model_selection", "plotting")

__all__ = [
    "CLIPImageEncoder",
    "CalibratedThresholdDetector",
    "DamageDirectionDetector",
    "FeedForwardClassifier",
    "FusionDetector",
    "ImageReadError",
    "OpenCLIP",
    "PromptDetector",
    "PromptSet",
    "RandomWordDetector",
    "ReferenceDetector",
    "SDPDetector",
    "SDPPlusDetector",
    "TiledDetector",
    "WeightsNotFound",
    "WinCLIPDetector",
    "anomaly_regions",
    "calibrate_threshold",
    "clear_models",
    "list_images",
    "random_word_prompts",
    "score_images",
]


# Old module -> where its names are now. Detectors that version 0.1.0 saved name them.
_OLD_MODULES = {
    "_embedding_cache": "_clip.embedding_cache",
    "_feed_forward_classifier": "_detectors.feed_forward",
    "_fusion_detector": "_detectors.fusion",
    "_image_encoder": "_clip.image_encoder",
    "_prompt_detector": "_detectors.prompt",
    "_random_word_detector": "_detectors.random_word",
    "_sdp_detector": "_detectors.sdp",
    "_sdp_plus_detector": "_detectors.sdp_plus",
    "_winclip_detector": "_detectors.winclip",
}


class _OldModule(types.ModuleType):
    """Stands for a module of 0.1.0; the new one is imported when it is needed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what inspection of all modules asks for
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = _OLD_MODULES[self.__name__.rpartition(".")[2]]
        return getattr(importlib.import_module(f".{module}", __name__), name)


for _name in _OLD_MODULES:
    _old = f"{__name__}.{_name}"
    sys.modules.setdefault(_old, _OldModule(_old))


def _public(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:  # it would hide misspelt names from type checkers
    __getattr__ = _public


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
