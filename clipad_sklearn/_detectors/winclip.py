"""`WinCLIPDetector`: scores windows of an image one by one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import expit
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from .._clip import read_once
from .._clip.encoding import pixel_batches
from .._clip.models import load
from .._clip.settings import OpenCLIP, check_clip
from .._validation import all_or_nothing, is_whole
from .class_names import (
    check_needs_no_labels,
    fit_named,
    names_of_images,
    score_named,
)
from .maps import MapDetector, batches, sized, upsampled
from .prompt import PromptDetector
from .references import photo_ids

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
    references : bool, default=False
        Whether the images given to `fit` are kept as references (WinCLIP+): a few
        normal ones, with which patches and windows are compared.
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
    reference_ids_ : list of str
        With `references`: a digest of the pixels of each reference, as the model sees
        them.
    reference_patches_ : ndarray of shape (n_references, n_patches, width)
        With `references`: their patch tokens, of length 1 and dtype float16.
    reference_windows_ : ndarray of shape (n_references, n_windows, n_features)
        With `references`: the embeddings of their windows of all sizes, of dtype
        float16.
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
        one, if the CLIP has no vision transformer of open_clip, or if there are no
        images to be references. With one reference, from whatever compares it with
        itself.

    Warns
    -----
    UserWarning
        From `fit`, if references are copies of others; each is kept once.

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

    With ``references=True`` the association of a patch token or window embedding e with
    the references' e_j of the same scale is (1 - max_j cos(e, e_j)) / 2, rounded to 16
    bits before. Scales are the patch tokens of the last block, normalised but not
    projected, and each window size, whose associations go to patches by the same
    harmonic mean. With F, the mean over scales, and M, the map above, the map is
    (M + F) / 2 and the anomaly probability of the image (p + max F) / 2, with p that
    of the scorer [1]_. The score is the log-odds of normal. An image is never compared
    with itself: a reference, known by its pixels, leaves itself out, so that scores of
    references are honest. That is our addition.

    F is small for most images. So with references set thresholds from images, by
    `contamination`, `pixel_contamination` or, with other images than the references,
    :func:`calibrate_threshold`.

    A map costs about as much as a dozen passes of the image; so does a score with
    references.

    ``class_name`` may also be given to every method, as one string or as one per
    image; a scorer that takes none ignores it.

    References
    ----------
    .. [1] J. Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and
       Segmentation", CVPR, 2023.

    Examples
    --------
    >>> from clipad_sklearn import WinCLIPDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(2, size=96, random_state=0).images
    >>> detector = WinCLIPDetector("tiny").fit()
    >>> [anomaly_map.shape for anomaly_map in detector.anomaly_maps(photos)]
    [(96, 96), (96, 96)]
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "image_scale": ["boolean"],
        "references": ["boolean"],
    }

    # For detectors that version 0.1.0 saved, which have no such parameter.
    references: bool = False

    def __init__(
        self,
        clip: OpenCLIP | str | os.PathLike[str] | None = None,
        *,
        scorer: Any = None,
        window_sizes: Sequence[int | tuple[int, int]] = (2, 3),
        image_scale: bool = True,
        references: bool = False,
        contamination: float | str = "auto",
        pixel_contamination: float | str = "auto",
    ) -> None:
        self.clip = clip
        self.scorer = scorer
        self.window_sizes = window_sizes
        self.image_scale = image_scale
        self.references = references
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, class_name: Any = None
    ) -> WinCLIPDetector:
        """Fit the scorer, and keep the references.

        Parameters
        ----------
        X : sequence of images or None, default=None
            Images, for what the scorer learns from their embeddings, for `references`
            and for numeric `contamination` and `pixel_contamination`; otherwise None
            will do.
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
        for name in ("reference_ids_", "reference_patches_", "reference_windows_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        if self.references:
            self._keep_references(clip, X)
        self._set_offset(X, class_name=class_name)
        return self

    def _check_fit(self, X: Any, y: Any = None) -> None:
        super()._check_fit(X, y)
        if self.references and X is None:
            raise ValueError(
                "references=True compares with the images given to `fit`, but X is "
                "None. Fit with a few normal images, or use references=False."
            )

    @property
    def _embedding_detector(self) -> Any:
        """What the image score comes from."""
        if self.references:
            raise ValueError(
                "With references=True the score of an image comes from its windows "
                "too, not from its embedding alone."
            )
        return self.scorer_

    # -- references ----------------------------------------------------------------

    def _keep_references(self, clip: OpenCLIP, images: Sequence[Any]) -> None:
        kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

        def collect(pixels: torch.Tensor, names: Any) -> np.ndarray:
            ids = photo_ids(pixels)
            new = [i for i, name in enumerate(ids) if ids.index(name) == i]
            new = [i for i in new if ids[i] not in kept]
            if new:
                _, embeddings = self._window_embeddings(pixels[new], whole=False)
                patches = rounded(_tower(clip).patch_tokens(pixels[new]))
                pairs = zip(patches, rounded(embeddings), strict=True)
                # Copies, so that none holds on to its batch.
                kept.update(
                    (ids[i], (own.copy(), of_windows.copy()))
                    for i, (own, of_windows) in zip(new, pairs, strict=True)
                )
            return np.zeros(len(pixels))

        for _ in batches(clip, images, None, collect):
            pass
        if len(kept) < len(images):
            warnings.warn(
                f"{len(images) - len(kept)} of the {len(images)} images are copies of "
                f"others: {len(kept)} references are kept.",
                UserWarning,
                stacklevel=4,
            )
        self.reference_ids_ = list(kept)
        self.reference_patches_, self.reference_windows_ = (
            np.stack(tokens) for tokens in zip(*kept.values(), strict=True)
        )

    def is_reference(self, X: Any) -> np.ndarray:
        """Return which of the images are references.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The images.

        Returns
        -------
        ndarray of shape (n_images,), dtype bool
            True for images that are references, pixel by pixel, as the model sees them.
        """
        check_is_fitted(self)
        images = self._check_images(X)
        if not self.references:
            return np.zeros(len(images), dtype=bool)
        clip = check_clip(self.clip)
        ids = [
            name
            for pixels, _ in pixel_batches(clip, images)
            for name in photo_ids(pixels)
        ]
        self._check_same_clip()
        return np.isin(ids, self.reference_ids_)

    def _reference_maps(
        self,
        pixels: torch.Tensor,
        embeddings: np.ndarray,
        windows: Sequence[np.ndarray],
    ) -> np.ndarray:
        """How far patches are from all references: (n_images, rows, columns)."""
        if not hasattr(self, "reference_ids_"):
            raise ValueError(
                "references=True was set after fit, which kept none: fit again."
            )
        tower = _tower(check_clip(self.clip))
        known = np.array(self.reference_ids_)
        same = np.array(photo_ids(pixels))[:, np.newaxis] == known
        if same.all(axis=1).any():
            raise ValueError(
                "An image is the only reference, so there is nothing to compare it "
                "with. Give `fit` more images, or score others."
            )
        patches = rounded(tower.patch_tokens(pixels))
        total = associations(patches, self.reference_patches_, same)
        total = total.reshape(-1, *tower.grid)
        ends = np.cumsum([len(size) for size in windows])[:-1]
        for size, of_images, of_references in zip(
            windows,
            np.split(rounded(embeddings), ends, axis=1),
            np.split(self.reference_windows_, ends, axis=1),
            strict=True,
        ):
            distances = associations(of_images, of_references, same)
            reciprocals = 1 / np.maximum(distances, _SMALLEST_PROBABILITY)
            total = total + harmonic_maps([reciprocals], [size], tower.grid)
        return total / (1 + len(windows))

    # -- scores and maps -----------------------------------------------------------

    def _score(self, embeddings: np.ndarray, class_name: Any) -> np.ndarray:
        return score_named(self.scorer_, embeddings, class_name)

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        images, clip = self._check_images(X), check_clip(self.clip)
        if not self.references:
            return self._score(clip.encode_image(images), class_name)
        if class_name is not None and not isinstance(class_name, str):
            class_name = names_of_images(class_name, len(images))

        maps: list[np.ndarray] = []

        def margins(pixels: torch.Tensor, names: str | list[str] | None) -> np.ndarray:
            of_batch, found = self._scored(pixels, names)
            maps.extend(of_batch)
            return found

        found: list[float] = []
        for of_batch, sizes in batches(clip, images, class_name, margins):
            pairs = list(zip(maps, sizes, strict=True))
            read_once.keep(images, len(found), self, pairs)
            maps.clear()
            found.extend(of_batch)
        return np.array(found)

    def _iter_maps(
        self,
        images: Sequence[Any],
        size: str | tuple[int, int],
        class_name: str | list[str] | None,
    ) -> Iterator[np.ndarray]:
        found = read_once.kept(images, self)
        if found is None:
            yield from super()._iter_maps(images, size, class_name)
            return
        input_size = _tower(check_clip(self.clip)).input_size
        for on_grid, image_size in found:
            yield sized(upsampled(on_grid, input_size), size, image_size)

    def _model_maps(
        self, pixels: torch.Tensor, class_names: str | list[str] | None
    ) -> np.ndarray:
        maps, _ = self._scored(pixels, class_names)
        return upsampled(maps, _tower(check_clip(self.clip)).input_size)

    def _window_embeddings(
        self, pixels: torch.Tensor, *, whole: bool
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the windows of all scales, and their embeddings.

        The whole grid is one more window: with all tokens it is the image.
        """
        clip = check_clip(self.clip)
        tower = _tower(clip)
        sizes = _check_window_sizes(self.window_sizes, tower.grid)
        sizes += [tower.grid] * whole
        windows = [window_patches(tower.grid, size) for size in sizes]
        # As many tokens at once as a batch of whole images has.
        n_tokens = clip.batch_size * (tower.grid[0] * tower.grid[1] + 1)
        return windows, tower.encode_windows(pixels, windows, n_tokens)

    def _scored(
        self, pixels: torch.Tensor, class_names: str | list[str] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Maps on the grid of patches, and the margin of each image if it is wanted."""
        whole = bool(self.image_scale or self.references)
        windows, embeddings = self._window_embeddings(pixels, whole=whole)
        n_images, n_windows, width = embeddings.shape
        if isinstance(class_names, list):
            class_names = [name for name in class_names for _ in range(n_windows)]
        margins = self._score(embeddings.reshape(-1, width), class_names)
        # 1 / p = 1 + exp(margin), clipped first so that it cannot overflow.
        largest = np.log(1 / _SMALLEST_PROBABILITY - 1)
        reciprocals = 1 + np.exp(np.minimum(margins, largest))
        ends = np.cumsum([len(patches) for patches in windows])[:-1]
        scales = np.split(reciprocals.reshape(n_images, n_windows), ends, axis=1)
        n_scales = len(windows) - (whole and not self.image_scale)
        grid = _tower(check_clip(self.clip)).grid
        maps = harmonic_maps(scales[:n_scales], windows[:n_scales], grid)
        if not self.references:
            return maps, np.empty(0)
        distances = self._reference_maps(pixels, embeddings[:, :-1], windows[:-1])
        # Log-odds of (p + max F) / 2, from the margin of the whole image.
        of_image = margins.reshape(n_images, n_windows)[:, -1]
        highest = distances.max(axis=(1, 2))
        log_normal = np.log(expit(of_image) + np.maximum(1 - highest, 1e-12))
        log_anomalous = np.log(expit(-of_image) + np.maximum(highest, 1e-12))
        return (maps + distances) / 2, log_normal - log_anomalous


def rounded(tokens: np.ndarray) -> np.ndarray:
    """Return tokens of length 1, rounded to 16 bits."""
    lengths = np.linalg.norm(tokens, axis=-1, keepdims=True)
    return (tokens / np.maximum(lengths, 1e-12)).astype(np.float16)


def associations(
    tokens: np.ndarray, references: np.ndarray, left_out: np.ndarray
) -> np.ndarray:
    """Return (1 - largest cosine) / 2 of tokens (n, p, d) with references (r, q, d).

    References that `left_out` (n, r) marks are not compared with that image.
    """
    n_images, n_tokens, width = tokens.shape
    rows = tokens.reshape(-1, width).astype(np.float32)
    largest = np.full((n_images, n_tokens), -1.0, dtype=np.float32)
    # So many references at once that the cosines take 128 MB.
    step = max(1, 2**25 // (len(rows) * references.shape[1]))
    for start in range(0, len(references), step):
        some = references[start : start + step]
        cosines = rows @ some.reshape(-1, width).astype(np.float32).T
        best = cosines.reshape(n_images, n_tokens, len(some), -1).max(axis=3)
        out = left_out[:, np.newaxis, start : start + step]
        best = np.where(out, np.float32(-1), best)
        largest = np.maximum(largest, best.max(axis=2))
    return ((1 - largest.astype(np.float64)) / 2).clip(0, 1)


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
                is_whole(n) and n <= limit
                for n, limit in zip(sizes[-1], grid, strict=True)
            ):
                raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"window_sizes={window_sizes!r}: {expected}.") from None
    if not sizes:
        raise ValueError(f"window_sizes is empty: {expected}.")
    return [(int(rows), int(columns)) for rows, columns in sizes]
