"""`SDPDetector`: anomaly maps from the patch tokens of one pass."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from .._clip.models import load
from .._clip.settings import OpenCLIP, check_clip
from .._prompts import PromptSet
from .._validation import all_or_nothing, check_blocks
from .maps import MapDetector, upsampled
from .prompt import PromptDetector, prototypes_of

if TYPE_CHECKING:
    import torch


class SDPDetector(MapDetector):
    """Locate anomalies with CLIP-AD's staged dual path, without training.

    Patch tokens of a CLIP do not match texts well, because the last blocks mix the
    whole image into each of them. A second path through the vision tower, on which
    values attend to values, keeps them local. It is read out in stages, and compared
    with prompts for normal and anomalous.

    Parameters
    ----------
    clip : OpenCLIP, str, PathLike or None, default=None
        Which CLIP: an :class:`OpenCLIP`, ``"model/pretrained"``,
        ``"hf-hub:organisation/name"``, a folder, ``"model/file"``, or ``"tiny"``. None
        is ``OpenCLIP()``. It needs a vision transformer of open_clip's own that does
        not pool by attention.
    prompts : str or PromptSet, default="clip-ad"
        States and templates, as in :class:`PromptDetector`.
    class_name : str, default="object"
        What the images show.
    aggregation : str, default="dbscan"
        How the embeddings of a state's prompts become one vector, as in
        :class:`PromptDetector`.
    aggregation_params : mapping or None, default=None
        Parameters of the aggregation, as in :class:`PromptDetector`.
    temperature : float, default=0.01
        What cosines of images are divided by; it does not change maps.
    layers : sequence of int or None, default=None
        The last block of each stage, counted from 1 and rising. A stage begins after
        the one before. None splits all blocks into four stages, of equal length where
        their number allows it: (3, 6, 9, 12) of 12 blocks.
    sigma : float, default=8.0
        Standard deviation of the Gaussian filter on maps, in pixels of the model's
        input. 0 is no filter.
    alias_compat : bool, default=False
        Whether to reproduce a side effect of the published code, see Notes.
    image_score : {"prompts", "prompts+map"}, default="prompts"
        ``"prompts"``: the margin of the image's embedding, as in
        :class:`PromptDetector`. ``"prompts+map"``: the published score, scaled with
        the range seen in `fit`, which needs images.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous.
    pixel_contamination : "auto" or float, default="auto"
        ``"auto"`` sets `pixel_offset_` to 0.5. A number in (0, 0.5] is the share of the
        pixels of the images given to `fit` that are called anomalous.

    Attributes
    ----------
    prompt_detector_ : PromptDetector
        The fitted prompts.
    score_range_ : ndarray of shape (2, 2)
        For ``image_score="prompts+map"``: smallest and largest (columns) anomaly
        probability and map maximum (rows) of the images given to `fit`.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    pixel_offset_ : float
        The threshold on anomaly maps: pixels above it are anomalous. It may be set
        after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.

    Raises
    ------
    ValueError
        From `fit`, if a parameter is out of range, or if the vision tower has no
        patch tokens that can be projected.

    See Also
    --------
    SDPPlusDetector : Adds layers trained on images with masks.
    WinCLIPDetector : Scores windows; slower, and takes any scorer.
    clipad_sklearn.plotting.AnomalyMapDisplay : Shows maps.

    Notes
    -----
    In each block, the second path is the output projection of attention in which the
    values V stand for queries and keys too: Wo softmax(V V' / sqrt(d)) V. It reads the
    original stream and is summed over the blocks of a stage. With the cosines c_a and
    c_n of a projected patch token of stage g with both prompts' vectors, and p_a, p_n
    the softmax, at temperature 1, of the image token's cosines at the end of that
    stage, the stage's map is p_a c_a - p_n c_n, and the map M their sum [1]_. That is
    the published feature surgery for two classes in closed form. M is enlarged
    bilinearly and smoothed.

    `anomaly_maps` returns 1/2 + M / (2 n_stages), which ranks as M, lies in [0, 1], and
    is 1/2 where neither state is nearer. Values stay close to 1/2, because cosines of
    a CLIP differ little.

    The published code keeps a reference to the stream at the end of a stage, to which
    the next block then adds the output of its attention in place. With
    ``alias_compat=True`` the image token (and the tokens on which
    :class:`SDPPlusDetector` trains) have this too.

    The published image score adds the anomaly probability and the maximum of the map,
    each scaled to [0, 1] over the whole test set, so that a score depends on the other
    images. With ``image_score="prompts+map"`` the ranges are those of the images given
    to `fit`, and the margin is 1 minus this sum, which is 0 halfway.

    The paper's text was not available to us; this is our reading of its public
    implementation. CLIP-AD chooses the ``eps`` of DBSCAN and `sigma` by data set; here
    they are parameters. Stages of depths other than 12 and models with average
    pooling (for which the image token is the pooled one) are our extension.

    ``class_name`` may also be given to every method, as one string or as one per
    image.

    References
    ----------
    .. [1] X. Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for
       Zero-shot Anomaly Detection", arXiv:2311.00453, 2023.

    Examples
    --------
    >>> from clipad_sklearn import SDPDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(2, size=96, random_state=0).images
    >>> detector = SDPDetector("tiny", sigma=4).fit()
    >>> [anomaly_map.shape for anomaly_map in detector.anomaly_maps(photos)]
    [(96, 96), (96, 96)]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "sigma": [Interval(Real, 0, None, closed="left")],
        "alias_compat": ["boolean"],
        "image_score": [StrOptions({"prompts", "prompts+map"})],
    }

    def __init__(
        self,
        clip: OpenCLIP | str | os.PathLike[str] | None = None,
        *,
        prompts: str | PromptSet = "clip-ad",
        class_name: str = "object",
        aggregation: str = "dbscan",
        aggregation_params: Mapping[str, Any] | None = None,
        temperature: float = 0.01,
        layers: Sequence[int] | None = None,
        sigma: float = 8.0,
        alias_compat: bool = False,
        image_score: str = "prompts",
        contamination: float | str = "auto",
        pixel_contamination: float | str = "auto",
    ) -> None:
        self.clip = clip
        self.prompts = prompts
        self.class_name = class_name
        self.aggregation = aggregation
        self.aggregation_params = aggregation_params
        self.temperature = temperature
        self.layers = layers
        self.sigma = sigma
        self.alias_compat = alias_compat
        self.image_score = image_score
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    @all_or_nothing
    def fit(self, X: Any = None, y: Any = None, class_name: Any = None) -> SDPDetector:
        """Encode the prompts.

        Parameters
        ----------
        X : sequence of images or None, default=None
            Images, for ``image_score="prompts+map"`` and for numeric `contamination`
            and `pixel_contamination`; otherwise None will do.
        y : None
            Ignored.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show. None is the parameter of that name. One string is
            also the default of later calls.

        Returns
        -------
        SDPDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        X = None if X is None else self._check_images(X)
        self._fit_prompts(class_name)
        self._set_thresholds(X, class_name)
        return self

    def _check_fit(self, X: Any, y: Any = None) -> None:
        super()._check_fit(X, y)
        if self.image_score == "prompts+map" and X is None:
            raise ValueError(
                "image_score='prompts+map' needs images for the range of its parts, "
                "but X is None. Fit with images, or use image_score='prompts'."
            )
        stage_ends(self.layers, self._tower().depth)

    def _fit_prompts(self, class_name: Any) -> None:
        one = class_name if isinstance(class_name, str) else None
        self.prompt_detector_ = PromptDetector(
            self.clip,
            prompts=self.prompts,
            class_name=self.class_name,
            aggregation=self.aggregation,
            aggregation_params=self.aggregation_params,
            temperature=self.temperature,
        ).fit(None, class_name=one)

    def _set_thresholds(self, X: Any, class_name: Any) -> None:
        if self.image_score == "prompts+map":
            parts = self._score_parts(X, class_name)
            self.score_range_ = np.stack([parts.min(axis=1), parts.max(axis=1)], axis=1)
        self._set_offset(X, class_name=class_name)

    @property
    def _embedding_detector(self) -> PromptDetector:
        """What the image score "prompts" comes from."""
        return self.prompt_detector_

    # -- image score -----------------------------------------------------------------

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        if self.image_score == "prompts":
            return self._prompt_margins(X, class_name)
        if not hasattr(self, "score_range_"):
            raise ValueError(
                "image_score='prompts+map' needs the range of its parts, which only "
                "fit(X) with images gives; after load_layers set warm_start=True for "
                "it. Or use image_score='prompts'."
            )
        X = self._check_images(X)
        lowest, highest = self.score_range_.T[:, :, np.newaxis]
        # A single image has no range.
        spread = np.where(highest > lowest, highest - lowest, 1)
        parts = (self._score_parts(X, class_name) - lowest) / spread
        return 1 - parts.sum(axis=0)

    def _prompt_margins(self, X: Any, class_name: Any) -> np.ndarray:
        embeddings = check_clip(self.clip).encode_image(self._check_images(X))
        return self.prompt_detector_.score_samples(embeddings, class_name=class_name)

    def _score_parts(self, X: Any, class_name: Any) -> np.ndarray:
        """Anomaly probability and map maximum of each image."""
        probabilities = self._probabilities(self._prompt_margins(X, class_name))
        maps = self.iter_anomaly_maps(X, size="model", class_name=class_name)
        maxima = [anomaly_map.max() for anomaly_map in maps]
        return np.stack([probabilities[:, 0], maxima])

    # -- maps --------------------------------------------------------------------------

    def _tower(self) -> Any:
        from .._clip.vision_tower import VisionTower

        tower = VisionTower(load(check_clip(self.clip)))
        tower.check_dual_path()
        return tower

    def _model_maps(
        self, pixels: torch.Tensor, class_names: str | list[str] | None
    ) -> np.ndarray:
        tower = self._tower()
        ends = stage_ends(self.layers, tower.depth)
        stages, _ = tower.dual_path_scores(
            pixels, ends, self.alias_compat, self._prototypes(class_names)
        )
        maps = upsampled(stages.mean(axis=0), tower.input_size, sigma=self.sigma)
        return (1 + maps) / 2

    def _prototypes(self, class_names: str | list[str] | None) -> np.ndarray:
        """Vectors of both states, for all images (1, 2, d) or each (n, 2, d)."""
        prompts = self.prompt_detector_
        if class_names is None:
            return prompts.prototypes_[:1]
        names = [class_names] if isinstance(class_names, str) else class_names
        return prototypes_of(prompts, names)


def stage_ends(layers: Any, depth: int) -> tuple[int, ...]:
    """Return the last block of each stage, counted from 1."""
    if layers is None:
        ends = {(depth * stage + 2) // 4 for stage in range(1, 5)}
        return tuple(sorted(ends - {0}))
    return check_blocks(layers, depth)
