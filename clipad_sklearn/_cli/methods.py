"""The methods that ``clipad`` knows by name, in one table.

Reading the table imports no torch: each detector is imported where it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._clip.settings import OpenCLIP

# Layers of SDP+ that no file gives are trained on this many generated images, and
# longer than on the thousands of images of a whole data set.
_N_AUXILIARY = 600
_TRAINING: dict[str, Any] = {
    "temperature": 0.07,
    "learning_rate": 3e-3,
    "n_epochs": 20,
    "shuffle": True,
}
# Photos that judge each other are compared with this share of the nearest ones.
MUTUAL_SHARE = 0.3


@dataclass(frozen=True)
class Choices:
    """What a method can be given."""

    class_name: str | None = None
    random_state: int = 0
    n_pairs: int = 10_000
    layers: str | None = None  # None: trained on generated images
    ignore: Any = None  # what of a photo does not count, for references
    # Of the prompts; empty and None: those of the method.
    preset: str | None = None
    templates: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    anomalous: tuple[str, ...] = ()
    # Other parameters of `RandomWordDetector` and of `FusionDetector`.
    words: dict[str, Any] = field(default_factory=dict)
    fusion: dict[str, Any] = field(default_factory=dict)

    @property
    def object_name(self) -> str:
        """What prompts call the object."""
        return self.class_name or "object"

    def prompts(self, preset: str) -> Any:
        """Return the preset, with what the user has of states and templates."""
        preset = self.preset or preset
        if not self.normal and not self.templates:
            return preset
        from .._prompts import PRESETS, PromptSet

        given = PRESETS[preset]
        return PromptSet(
            self.normal or given.normal_states,
            self.anomalous or given.anomalous_states,
            self.templates or given.templates,
        )

    def random_words(self) -> dict[str, Any]:
        """Return what is asked of `RandomWordDetector` besides."""
        words = dict(self.words)
        if self.normal:
            words["normal_states"] = self.normal
            words["anomalous_states"] = self.anomalous
        if self.templates:
            words["templates"] = self.templates
        return words


def _clip_ac(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.prompt import PromptDetector

    prompts = choices.prompts("clip-ac")
    return PromptDetector(clip, prompts=prompts, class_name=choices.object_name)


def _prompt(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.prompt import PromptDetector

    prompts = choices.prompts("winclip")
    return PromptDetector(clip, prompts=prompts, class_name=choices.object_name)


def _random_word(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.random_word import RandomWordDetector

    return RandomWordDetector(
        clip,
        class_name=choices.class_name,
        n_pairs=choices.n_pairs,
        random_state=choices.random_state,
        **choices.random_words(),
    )


def kept_words(clip: OpenCLIP, choices: Choices) -> Any:
    """Return random words as part of another detector: frozen, where they are kept."""
    from .kept import is_kept, learned_words

    words = _random_word(clip, choices)
    if not is_kept(clip):
        return words
    from sklearn.frozen import FrozenEstimator

    return FrozenEstimator(learned_words(words, clip))


def _fusion(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.fusion import FusionDetector

    members = [
        ("words", kept_words(clip, choices)),
        ("prompts", _prompt(clip, choices)),
    ]
    return FusionDetector(members, **choices.fusion)


def _winclip(scorer: Callable[[OpenCLIP, Choices], Any]) -> Callable[..., Any]:
    def make(clip: OpenCLIP, choices: Choices) -> Any:
        from .._detectors.winclip import WinCLIPDetector

        return WinCLIPDetector(clip, scorer=scorer(clip, choices))

    return make


def _sdp(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.sdp import SDPDetector

    prompts = choices.prompts("clip-ad")
    return SDPDetector(clip, prompts=prompts, class_name=choices.object_name)


def _sdp_plus(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.sdp_plus import SDPPlusDetector

    training: dict[str, Any] = {}
    if choices.layers is None:
        training = {"random_state": choices.random_state, **_TRAINING}
    return SDPPlusDetector(clip, class_name=choices.object_name, **training)


@dataclass(frozen=True)
class Method:
    """One method: whether it has a seed, what it takes, and how it is made."""

    seeded: bool
    on_images: bool  # else on embeddings
    make: Callable[[OpenCLIP, Choices], Any]


def _reference(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.reference import ReferenceDetector

    return ReferenceDetector(
        clip, ignore=choices.ignore, random_state=choices.random_state
    )


def _mutual(clip: OpenCLIP, choices: Choices) -> Any:
    from .._detectors.reference import ReferenceDetector

    return ReferenceDetector(
        clip,
        n_neighbors=MUTUAL_SHARE,
        ignore=choices.ignore,
        random_state=choices.random_state,
    )


METHODS: dict[str, Method] = {
    "clip-ac": Method(False, False, _clip_ac),
    "prompt": Method(False, False, _prompt),
    "random-word": Method(True, False, _random_word),
    "fusion": Method(True, False, _fusion),
    "winclip": Method(False, True, _winclip(_prompt)),
    "winclip-random-word": Method(True, True, _winclip(kept_words)),
    "winclip-fusion": Method(True, True, _winclip(_fusion)),
    "sdp": Method(False, True, _sdp),
    "sdp-plus": Method(True, True, _sdp_plus),
    "reference": Method(True, True, _reference),
    "mutual": Method(False, True, _mutual),
}
LEARNS_FROM_PHOTOS = ("reference", "mutual")


def method_name(text: str) -> str:
    """Return the name in `METHODS` of a name that a user gives."""
    return {"sdp+": "sdp-plus"}.get(text, text)


def method_and_shots(name: str) -> tuple[Method, int | None]:
    """Return a method, and from a name such as ``"reference-4"`` how many photos."""
    base, _, shots = name.partition("-")
    if base == "reference" and shots.isdecimal():
        return METHODS[base], int(shots)
    return METHODS[name], None


def fitted_detector(name: str, clip: OpenCLIP, choices: Choices) -> Any:
    """Return the fitted detector, on images or on embeddings, of a method."""
    detector = METHODS[name].make(clip, choices)
    if name == "random-word":
        from .kept import learned_words

        return learned_words(detector, clip)
    if name != "sdp-plus":
        return detector.fit(None)
    if choices.layers is not None:
        return detector.load_layers(choices.layers)
    from ..datasets import make_defect_images

    # Other images than those of a benchmark on generated images with small seeds.
    auxiliary = make_defect_images(
        _N_AUXILIARY, random_state=10**6 + choices.random_state
    )
    return detector.fit(auxiliary.images, auxiliary.masks)
