"""`WinCLIPDetector`: scores windows of an image one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sklearn.base import clone

from .._clip.models import load
from .._clip.settings import OpenCLIP, check_clip
from .._validation import all_or_nothing
from .class_names import check_needs_no_labels, fit_named, score_named
from .maps import MapDetector, upsampled
from .prompt import PromptDetector

if TYPE_CHECKING:
    import torch

# Anomaly probabilities are kept above this before their reciprocal is taken.
_SMALLEST_PROBABILITY = 1e-6


class WinCLIPDetector(MapDetector):
    """Locate anomalies by scoring windows of patches one by one.

    Every window of the image is encoded as if it were all there is, and scored by a
    detector on embeddings. A patch is as anomalous as the windows that cover it. With a
    :class:`RandomWordDetector` as `scorer` this gives anomaly maps without a word
    about the object.

    Parameters
    ----------
    clip : OpenCLIP, str, PathLike or None, default=None
        Which CLIP: an :class:`OpenCLIP`, ``"model/pretrained"``,
        ``"hf-hub:organisation/name"``, a folder, ``"model/file"``, or ``"tiny"``. None
        is ``OpenCLIP()``. It needs a vision transformer of open_clip's own.
    scorer : detector or None, default=None
        Any detector on embeddings with `score_samples` (a margin) and `predict_proba`,
        such as :class:`PromptDetector`, :class:`RandomWordDetector` or
        :class:`FusionDetector`, of the same CLIP. It is cloned. None is
        ``PromptDetector(clip)``.
    window_sizes : sequence of int or (int, int), default=(2, 3)
        Height and width of the windows in patches. Each size is a scale.
    image_scale : bool, default=True
        Whether the score of the whole image counts as one more scale of the map.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous.
    pixel_contamination : "auto" or float, default="auto"
        ``"auto"`` sets `pixel_offset_` to 0.5. A number in (0, 0.5] is the share of the
        pixels of the images given to `fit` that are called anomalous.

    Attributes
    ----------
    scorer_ : detector
        The fitted scorer.
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
        From `fit`, if a parameter is out of range, if the scorer's CLIP is another
        one, or if the CLIP has no vision transformer of open_clip.

    See Also
    --------
    SDPDetector : Maps from patch tokens, at little more than one pass.
    RandomWordDetector : A scorer that does not need to know the object.
    clipad_sklearn.plotting.AnomalyMapDisplay : Shows maps.

    Notes
    -----
    The score of an image is the scorer's margin for its whole embedding.

    A window keeps its patch tokens, as they are after patch embedding and positions,
    and the class token; all other tokens are left out, and the rest of the vision
    tower runs on these few. With the anomaly probability a_W of a window, kept above
    1e-6, the map of one scale is at each patch the harmonic mean of a_W over the
    windows that cover it, and the final map the harmonic mean over scales, with the
    probability of the whole image as one more scale [1]_. A harmonic mean lets normal
    windows weigh more. Maps are enlarged bilinearly and not smoothed.

    The paper's text was not available to us beyond its formulas as public
    implementations have them. These leave the margin's temperature open (0.01 or
    0.07); it is the scorer's. Scorers other than prompts are our addition.

    A map costs about as much as a dozen passes of the image.

    ``class_name`` may also be given to every method, as one string or as one per
    image; a scorer that takes none ignores it.

    References
    ----------
    .. [1] J. Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and
       Segmentation", CVPR, 2023.

    Examples
    --------
    >>> from clipad_sklearn import RandomWordDetector, WinCLIPDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(2, size=96, random_state=0).images
    >>> words = RandomWordDetector("tiny", n_pairs=200, random_state=0)
    >>> detector = WinCLIPDetector("tiny", scorer=words).fit()
    >>> [anomaly_map.shape for anomaly_map in detector.anomaly_maps(photos)]
    [(96, 96), (96, 96)]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "image_scale": ["boolean"],
    }

    def __init__(
        self,
        clip: OpenCLIP | str | os.PathLike[str] | None = None,
        *,
        scorer: Any = None,
        window_sizes: Sequence[int | tuple[int, int]] = (2, 3),
        image_scale: bool = True,
        contamination: float | str = "auto",
        pixel_contamination: float | str = "auto",
    ) -> None:
        self.clip = clip
        self.scorer = scorer
        self.window_sizes = window_sizes
        self.image_scale = image_scale
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, class_name: Any = None
    ) -> WinCLIPDetector:
        """Fit the scorer.

        Parameters
        ----------
        X : sequence of images or None, default=None
            Images, for what the scorer learns from their embeddings and for numeric
            `contamination` and `pixel_contamination`; otherwise None will do.
        y : None
            Ignored.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show; passed on to a scorer that takes it.

        Returns
        -------
        WinCLIPDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        clip = check_clip(self.clip)
        grid = _tower(clip).grid
        _check_window_sizes(self.window_sizes, grid)
        scorer = PromptDetector(self.clip) if self.scorer is None else self.scorer
        if not all(hasattr(scorer, m) for m in ("score_samples", "predict_proba")):
            raise ValueError(
                f"scorer={scorer!r} does not give margins: expected a detector on "
                "embeddings with score_samples and predict_proba, such as "
                "PromptDetector or RandomWordDetector."
            )
        check_needs_no_labels("The scorer", scorer)
        X = None if X is None else self._check_images(X)
        embeddings = None if X is None else clip.encode_image(X)
        self.scorer_ = fit_named(clone(scorer), embeddings, class_name)
        width = load(clip).embedding_width
        expected = getattr(self.scorer_, "n_features_in_", width)
        if expected != width:
            raise ValueError(
                f"The scorer {scorer!r} takes embeddings of {expected} features, but "
                f"clip={self.clip!r} makes {width}. Both need the same clip."
            )
        self._set_offset(X, class_name=class_name)
        return self

    @property
    def _embedding_detector(self) -> Any:
        """What the image score comes from."""
        return self.scorer_

    def _score(self, embeddings: np.ndarray, class_name: Any) -> np.ndarray:
        return score_named(self.scorer_, embeddings, class_name)

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        embeddings = check_clip(self.clip).encode_image(self._check_images(X))
        return self._score(embeddings, class_name)

    def _model_maps(
        self, pixels: torch.Tensor, class_names: str | list[str] | None
    ) -> np.ndarray:
        clip = check_clip(self.clip)
        tower = _tower(clip)
        sizes = _check_window_sizes(self.window_sizes, tower.grid)
        if self.image_scale:
            # The whole grid is one more window: with all tokens it is the image.
            sizes = [*sizes, tower.grid]
        windows = [window_patches(tower.grid, size) for size in sizes]
        # As many tokens at once as a batch of whole images has.
        n_tokens = clip.batch_size * (tower.grid[0] * tower.grid[1] + 1)
        embeddings = tower.encode_windows(pixels, windows, n_tokens)

        n_images, n_windows, width = embeddings.shape
        if isinstance(class_names, list):
            class_names = [name for name in class_names for _ in range(n_windows)]
        margins = self._score(embeddings.reshape(-1, width), class_names)
        # 1 / p = 1 + exp(margin), clipped first so that it cannot overflow.
        largest = np.log(1 / _SMALLEST_PROBABILITY - 1)
        reciprocals = 1 + np.exp(np.minimum(margins, largest))
        ends = np.cumsum([len(patches) for patches in windows])[:-1]
        scales = np.split(reciprocals.reshape(n_images, n_windows), ends, axis=1)
        maps = harmonic_maps(scales, windows, tower.grid)
        return upsampled(maps, tower.input_size)


def window_patches(grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the patch numbers of every window of a size, row by row."""
    numbers_ = np.arange(grid[0] * grid[1]).reshape(grid)
    windows = np.lib.stride_tricks.sliding_window_view(numbers_, size)
    return windows.reshape(-1, size[0] * size[1])


def harmonic_maps(
    reciprocals: Sequence[np.ndarray],
    windows: Sequence[np.ndarray],
    grid: tuple[int, int],
) -> np.ndarray:
    """Fuse reciprocal window scores of all scales: (n_images, rows, columns)."""
    total = np.zeros((len(reciprocals[0]), grid[0] * grid[1]))
    for scores, patches in zip(reciprocals, windows, strict=True):
        covers = np.zeros((total.shape[1], len(patches)))
        np.put_along_axis(covers, patches.T, 1, axis=0)
        total += scores @ (covers / covers.sum(axis=1, keepdims=True)).T
    return (len(windows) / total).reshape(-1, *grid)


def _tower(clip: OpenCLIP) -> Any:
    from .._clip.vision_tower import VisionTower

    return VisionTower(load(clip))


def _check_window_sizes(
    window_sizes: Any, grid: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return (rows, columns) of each scale."""
    expected = (
        f"expected a sequence of whole numbers or pairs (rows, columns) from 1 to the "
        f"{grid[0]} x {grid[1]} patches of the model"
    )
    sizes = []
    try:
        for size in window_sizes:
            rows, columns = (
                (size, size) if isinstance(size, (int, np.integer)) else size
            )
            sizes.append((rows, columns))
            if not all(
                isinstance(n, (int, np.integer)) and 1 <= n <= limit
                for n, limit in zip(sizes[-1], grid, strict=True)
            ):
                raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"window_sizes={window_sizes!r}: {expected}.") from None
    if not sizes:
        raise ValueError(f"window_sizes is empty: {expected}.")
    return [(int(rows), int(columns)) for rows, columns in sizes]
