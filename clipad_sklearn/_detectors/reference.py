"""`ReferenceDetector`: photos compared, patch by patch, with reference photos."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.special import expit
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, Options, RealNotInt, StrOptions
from sklearn.utils.validation import check_is_fitted

from .._clip import read_once
from .._clip.encoding import keyed_pixel_batches, pixel_batches
from .._clip.models import load
from .._clip.settings import OpenCLIP, check_clip
from .._errors import ImageReadError
from .._images import image_name
from .._validation import all_or_nothing, check_blocks, is_whole
from .base import quantile_offset
from .kept_tokens import KeptTokens
from .maps import MapDetector, check_size, pixel_quantile, sized, upsampled
from .patch_distances import PatchMatcher, count_neighbors
from .patch_memory import Kept, ThinnedMatcher, thinned
from .references import Photo, References, center_and_spread, photo_ids
from .regions import ignored_pixels

if TYPE_CHECKING:
    import torch

# A photo this many spreads less normal than the median of the references has margin 0.
SPREADS = 3.0
# Blocks with more patches than this many times those of the last are no default.
_FINEST = 16
# Fewer references than this say little about the spread of scores.
_FEW = 4


class ReferenceDetector(MapDetector):
    """Compare photos, patch by patch, with the photos given to `fit`.

    A patch is as anomalous as the nearest patches of other photos are far away. With
    good photos as references this finds what none of them shows. With an unlabelled
    folder, and a share of it as `n_neighbors`, it finds what few photos of the folder
    show. No words are needed.

    Parameters
    ----------
    clip : OpenCLIP, str, PathLike or None, default=None
        Which CLIP: an :class:`OpenCLIP`, ``"model/pretrained"``,
        ``"hf-hub:organisation/name"``, a folder, ``"model/file"``, or ``"tiny"``. None
        is ``OpenCLIP()``. Any vision tower that keeps a grid of patches will do.
    n_neighbors : int or float, default=1
        How many references count at each patch: the mean distance to this many nearest
        ones. A float in (0, 1] is a share of the references that there are to compare
        with, rounded down, at least one. 1 suits good photos, a share such as 0.3
        unlabelled ones.
    location : {"both", "same", "anywhere"}, default="both"
        Where in a reference the nearest patch is looked for. ``"anywhere"``: in all of
        it. ``"same"``: at the same place, which sees what is missing or misplaced where
        all photos show the same pose. ``"both"``: whichever of the two is more unusual
        for this detector's references; with fewer than 4 references ``"anywhere"``.
    radius : int, default=0
        How many patches away the same place reaches, in all directions.
    layers : sequence of int or None, default=None
        The blocks of the vision tower, counted from 1 and rising, after which patches
        are compared. None is three of them, at thirds of the depth: (4, 8, 12) of 12
        blocks. Of convolutional towers these are stages, and None leaves out those
        with more than 16 times the patches of the last.
    neighborhoods : sequence of int, default=(1,)
        Odd numbers: patches are averaged over as many rows and columns around them,
        and compared for each of these sizes.
    orientations : {1, 4, 8}, default=1
        4 compares with references turned by quarters too, 8 with mirrored ones as
        well, for products that lie as they fell. Quarter turns need a square input.
        Turned references are never compared at the same place.
    image_share : float, default=0.01
        The score of a photo is the mean of this share of its patch scores, the
        highest ones, at least one.
    sigma : float, default=4.0
        Standard deviation of the Gaussian filter on maps, in pixels of the model's
        input. 0 is no filter.
    max_references : int or None, default=None
        Keep at most this many photos, drawn with `random_state` whatever their order.
    max_patches : int or None, default=None
        Keep at most this many patches of each block and neighbourhood, those that lie
        far from each other, so that memory and time of a score do not grow with the
        references. For ``location="anywhere"`` and ``n_neighbors=1``, because kept
        patches have no place and say nothing of how many photos show the like.
    ignore : array-like of shape (height, width), sequence of (x, y), or None, \
default=None
        What of a photo does not count, as in :func:`anomaly_regions`: a mask of the
        photos' size whose pixels are not zero there, or the corners of a polygon in
        pixels of the photo, at least three. Where a serial number is printed, for
        example. Patches of which it covers half or more have no part in scores, and
        maps are 0 there. References may still show there what is normal elsewhere.
    on_error : {"raise", "skip"}, default="raise"
        What `fit` does with photos that cannot be read: raise an error that names all
        of them, or leave them out with a warning that does.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the
        references that are called anomalous.
    pixel_contamination : "auto" or float, default="auto"
        ``"auto"`` sets `pixel_offset_` to 0.5. A number in (0, 0.5] is the share of the
        pixels of the references that are called anomalous.
    random_state : int, RandomState instance or None, default=None
        Draws what `max_references` keeps, and where `max_patches` begins.

    Attributes
    ----------
    reference_ids_ : ndarray of shape (n_references,), dtype str
        Digests of the preprocessed pixels, by which references are recognised.
    reference_scores_ : ndarray of shape (n_references,), dtype float64
        The margin of each reference, compared with all others. NaN for a single one.
    reference_sizes_ : ndarray of shape (n_references, 2)
        Height and width of each.
    reference_tokens_ : list of ndarray
        For each block, the standardised tokens of the references, of shape
        (n_references, orientations, rows, columns, n_features) and dtype float16. With
        `max_patches` for each block and neighbourhood the kept patches, of shape
        (n_patches, n_features).
    reference_owners_ : list of ndarray
        With `max_patches`, the number of the reference that each kept patch is of.
    reference_patch_scores_ : ndarray
        Patch scores of each reference compared with all others, of shape
        (n_references, n_places, rows, columns).
    n_copies_ : int
        How many of the photos were copies of others, and were left out.
    input_size_ : tuple of int
        Height and width of the model's input, in pixels.
    layers_ : tuple of int
        The blocks that are compared.
    location_ : str
        Where nearest patches are looked for: `location`, or what replaces it.
    image_scale_, patch_scale_ : ndarray of shape (n_places or 3, 2)
        Centre and spread of the scores of photos and of patches among the references:
        for each place, and for the larger of both.
    seed_ : int
        What decides which photos `max_references` keeps, and where `max_patches`
        begins.
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
        From `fit`, if there is no photo, if a parameter is out of range, if there is
        nothing to compare with, or if the vision tower keeps no grid of patches.
    ImageReadError
        From `fit`, if photos cannot be read and ``on_error="raise"``, or if none can.

    Warns
    -----
    UserWarning
        From `fit`, if there are fewer than 4 references, if photos are copies of
        others or cannot be read, or if the share `n_neighbors` is a single photo.

    See Also
    --------
    WinCLIPDetector : Maps from words.
    calibrate_threshold : Sets the threshold from further good photos.

    Notes
    -----
    Let x_l(p) be the token of patch p after block l. The tokens of a photo are
    standardised over all its patches and features, averaged over r x r patches, with 0
    outside the photo, and divided by their length. The distance d(p, j) to reference j
    is that to its nearest patch, and the patch score a(p) the mean of the smallest
    `n_neighbors` of them, averaged over blocks and neighbourhoods. A single nearest
    reference is the method of PatchCore [1]_ and AnomalyDINO [2]_, a share of
    unlabelled photos that of MuSc [3]_. Grids of different size, as convolutional
    towers have, are enlarged to the finest one.

    **A photo is never compared with itself.** References are recognised by their
    preprocessed pixels wherever they appear, so scores of the photos given to `fit` are
    honest: ``fit(X).predict(X)`` equals ``fit_predict(X)``.

    Scores become margins with the scores of the references, each compared with all
    others: with their median c and lower spread s = max(c - 16 % quantile,
    0.01 c + 0.001), z = (a - c) / s and the margin is 3 - z. For ``"both"`` z is taken
    for either place, and once more for the larger z. Maps are the logistic function of
    z - 3, with c and s of the references' patch scores. So 0 and 0.5 are three spreads
    from the median; that is a convention and promises no rate. Computed for Gaussian
    scores, 10.6 % of new good photos are below 0 with 4 references, 6.4 % with 8, 3.1 %
    with 16 and 0.8 % with 40. :func:`calibrate_threshold` promises one.

    For a single reference c and s come from its turned copies.

    `max_patches` thins the patches by the greedy k-centre rule of [1]_: the patch that
    is farthest from all that are kept is kept next. Distances then are to kept patches,
    those of the references too, of which each leaves its own out. Fitting needs the
    patches of all photos at once, and as many products of them with one patch as are
    kept. Rounding errors, as between sizes of batches, may change which of two patches
    is kept.

    What is compared, margins, maps, ``"both"`` and defaults are our choices, the
    defaults made on photos of seven products with the embedded model.

    References
    ----------
    .. [1] K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection",
       CVPR, 2022.
    .. [2] S. Damm et al., "AnomalyDINO: Boosting Patch-Based Few-Shot Anomaly
       Detection with DINOv2", WACV, 2025.
    .. [3] X. Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and
       Segmentation with Mutual Scoring of the Unlabeled Images", ICLR, 2024.

    Examples
    --------
    >>> from clipad_sklearn import ReferenceDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> photos = make_defect_images(24, size=96, random_state=0)
    >>> good = [x for x, y in zip(photos.images, photos.target) if y == 1]
    >>> detector = ReferenceDetector("tiny").fit(good)
    >>> detector.score_samples(photos.images).shape
    (24,)
    >>> detector.anomaly_maps(photos.images[:1])[0].shape
    (96, 96)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "n_neighbors": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
        ],
        "location": [StrOptions({"both", "same", "anywhere"})],
        "radius": [Interval(Integral, 0, None, closed="left")],
        "orientations": [Options(Integral, {1, 4, 8})],
        "image_share": [Interval(Real, 0, 1, closed="right")],
        "sigma": [Interval(Real, 0, None, closed="left")],
        "max_references": [None, Interval(Integral, 2, None, closed="left")],
        "max_patches": [None, Interval(Integral, 2, None, closed="left")],
        "on_error": [StrOptions({"raise", "skip"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        clip: OpenCLIP | str | os.PathLike[str] | None = None,
        *,
        n_neighbors: int | float = 1,
        location: str = "both",
        radius: int = 0,
        layers: Sequence[int] | None = None,
        neighborhoods: Sequence[int] = (1,),
        orientations: int = 1,
        image_share: float = 0.01,
        sigma: float = 4.0,
        max_references: int | None = None,
        max_patches: int | None = None,
        ignore: Any = None,
        on_error: str = "raise",
        contamination: float | str = "auto",
        pixel_contamination: float | str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.clip = clip
        self.n_neighbors = n_neighbors
        self.location = location
        self.radius = radius
        self.layers = layers
        self.neighborhoods = neighborhoods
        self.orientations = orientations
        self.image_share = image_share
        self.sigma = sigma
        self.max_references = max_references
        self.max_patches = max_patches
        self.ignore = ignore
        self.on_error = on_error
        self.contamination = contamination
        self.pixel_contamination = pixel_contamination
        self.random_state = random_state

    # -- fit ------------------------------------------------------------------------

    @all_or_nothing
    def fit(
        self, X: Any = None, y: Any = None, class_name: Any = None
    ) -> ReferenceDetector:
        """Keep the photos as references, and score each against all others.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The photos: good ones, or for a share as `n_neighbors` mostly good ones.
        y : None
            Ignored.
        class_name : None
            Ignored.

        Returns
        -------
        ReferenceDetector
            The fitted detector.
        """
        self._check_fit(X, y)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        self.seed_ = int(seed)
        self.n_copies_ = 0
        self._learn(X, References(self.seed_, self.max_references))
        return self

    @all_or_nothing
    def partial_fit(
        self, X: Any, y: Any = None, class_name: Any = None
    ) -> ReferenceDetector:
        """Add photos to the references.

        All scores, centres, spreads and thresholds are computed again, so that several
        calls equal one `fit` of all the photos. A calibration is dropped.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            More photos.
        y : None
            Ignored.
        class_name : None
            Ignored.

        Returns
        -------
        ReferenceDetector
            The fitted detector.

        Raises
        ------
        ValueError
            If `layers`, `orientations` or the CLIP are not those of the references, or
            with `max_patches`, because what was left out is needed again.

        Warns
        -----
        UserWarning
            If a calibration is dropped.
        """
        if self.max_patches is not None or hasattr(self, "reference_owners_"):
            raise ValueError(
                f"max_patches={self.max_patches!r}: partial_fit would need the patches "
                "that were left out: fit all photos at once."
            )
        if not hasattr(self, "reference_ids_"):
            return self.fit(X, y)
        if hasattr(self, "calibration_scores_"):
            warnings.warn(
                "The threshold was calibrated for the references so far: it is "
                "dropped. Calibrate again.",
                UserWarning,
                stacklevel=3,
            )
            del self.calibration_scores_
        self._check_fit(X, y)
        self._check_same_tokens()
        references = References(self.seed_, self.max_references)
        references.n_copies = self.n_copies_
        for number, name in enumerate(self.reference_ids_.tolist()):
            tokens = [block[number] for block in self.reference_tokens_]
            height, width = self.reference_sizes_[number].tolist()
            references.photos[name] = Photo((height, width), tokens)
        self._learn(X, references)
        return self

    def _check_fit(self, X: Any, y: Any = None) -> None:
        super()._check_fit(X, y)
        if X is None:
            raise ValueError(
                "ReferenceDetector learns from photos, but X is None: fit it with good "
                "photos, or with a folder that judges itself."
            )
        _check_neighborhoods(self.neighborhoods)
        if self.max_patches is not None:
            self._check_thinned()

    def _check_thinned(self) -> None:
        """Check that patches without photo and place are enough."""
        for name, needed in ("location", "anywhere"), ("n_neighbors", 1):
            value = getattr(self, name)
            if value != needed or isinstance(value, float):
                raise ValueError(
                    f"{name}={value!r}: expected {needed!r} with max_patches="
                    f"{self.max_patches!r}, which keeps patches without their photos."
                )

    def _check_same_tokens(self) -> None:
        """Check that further photos give tokens like those of the references."""
        import torch

        from .._clip.patch_tokens import turned

        tower = self._tower()
        self._check_same_clip()
        layers = check_layers(self.layers, tower.shapes)
        blank = torch.zeros(1, 3, *tower.input_size)
        n_copies = len(turned(blank, self.orientations))
        expected = [(n_copies, *tower.shapes[block - 1]) for block in layers]
        found = [tokens.shape[1:] for tokens in self.reference_tokens_]
        if layers != self.layers_ or expected != found:
            raise ValueError(
                f"layers={self.layers!r}, orientations={self.orientations!r} or the "
                "CLIP are not those of the references: fit all photos again."
            )

    def _learn(self, X: Any, references: References) -> None:
        images = self._check_images(X)
        tower = self._tower()
        self.layers_ = check_layers(self.layers, tower.shapes)
        self.input_size_ = tower.input_size
        n_before = len(references.photos) + references.n_copies
        first: Any = None
        clip = check_clip(self.clip)
        skipped: list[tuple[int, str, str]] | None = None
        if self.on_error == "skip":
            skipped = []
        for pixels, sizes, put in keyed_pixel_batches(clip, images, skipped):

            def encode(
                rows: list[int], pixels: Any = pixels, put: Any = put
            ) -> list[np.ndarray]:
                def new(some: list[int]) -> list[np.ndarray]:
                    of_batch = [rows[i] for i in some]
                    tokens, embeddings = self._encode(tower, pixels[of_batch])
                    put(of_batch, embeddings)
                    return tokens

                return self._kept_or_new(tower, pixels[rows], new)

            first = pixels[:1] if first is None else first
            references.add(pixels, sizes, encode)
        if skipped:
            self._warn_about_skipped(skipped, len(images))
        self._keep(references)
        n = len(self.reference_ids_)
        self._set_location(n)
        self._warn_about_references(n_before + len(images) - len(skipped or ()))
        tokens = self.reference_tokens_
        if self.max_patches is not None:
            self._thin(references.order(), tower.model.device)
        self._set_scales(tower, tokens, first)
        self._set_thresholds()

    def _set_location(self, n: int) -> None:
        """Set where patches are looked for, with `n` references."""
        few = self.location == "both" and n < _FEW
        self.location_ = "anywhere" if few else self.location

    def _keep(self, references: References) -> None:
        """Set what is kept of the references."""
        photos = list(references.photos.values())
        self.reference_ids_ = np.array(list(references.photos))
        self.reference_sizes_ = np.array([photo.size for photo in photos])
        self.reference_tokens_ = [
            np.stack([photo.tokens[number] for photo in photos])
            for number in range(len(self.layers_))
        ]
        self.n_copies_ = references.n_copies
        self.__dict__.pop("reference_owners_", None)  # of an earlier fit

    def _thin(self, order: Sequence[int], device: str) -> None:
        """Keep `max_patches` patches, begun in the order of the photos' hashes."""
        tokens = _on_device(self.reference_tokens_, device)
        kept = thinned(tokens, self.neighborhoods, int(self.max_patches or 0), order)
        self.reference_tokens_ = [one.patches.cpu().numpy() for one in kept]
        self.reference_owners_ = [one.owners.cpu().numpy() for one in kept]
        alone = any(len(np.unique(owners)) == 1 for owners in self.reference_owners_)
        if alone and len(self.reference_ids_) > 1:
            raise ValueError(
                f"max_patches={self.max_patches!r} keeps patches of a single photo, "
                "which has nothing left to be compared with: keep more."
            )

    def _warn_about_skipped(
        self, skipped: list[tuple[int, str, str]], n_given: int
    ) -> None:
        if len(skipped) == n_given:
            raise ImageReadError(skipped)
        named = "; ".join(f"{name}: {reason}" for _, name, reason in skipped[:10])
        warnings.warn(
            f"{len(skipped)} of the {n_given} photos cannot be read and are left out: "
            f"{named}{'; ...' if len(skipped) > 10 else ''}.",
            UserWarning,
            stacklevel=5,
        )

    def _warn_about_references(self, n_given: int) -> None:
        n = len(self.reference_ids_)
        copies, few = self.n_copies_, []
        if copies:
            warnings.warn(
                f"{copies} of the {n_given} photos are copies of others, as the model "
                "sees them: each is kept once.",
                UserWarning,
                stacklevel=5,
            )
        if n < _FEW:
            few.append("verdicts are a guess")
            if self.location_ != self.location:
                few.append(f"location='both' is {self.location_!r}")
        if n == 1 and not isinstance(self.n_neighbors, Integral):
            raise ValueError(
                f"n_neighbors={self.n_neighbors!r} is a share of the other photos, but "
                "there is only one photo: nothing is left to compare it with."
            )
        if few:
            warnings.warn(
                f"Fewer than {_FEW} references ({n}): {' and '.join(few)}.",
                UserWarning,
                stacklevel=5,
            )
        if (
            not isinstance(self.n_neighbors, Integral)
            and count_neighbors(self.n_neighbors, n - 1) == 1
        ):
            enough = int(np.ceil(2 / float(self.n_neighbors) - 1e-9)) + 1
            warnings.warn(
                f"n_neighbors={self.n_neighbors!r} of the {n - 1} other photos is one "
                "photo: two photos with the same defect hide each other. From "
                f"{enough} photos on it is two.",
                UserWarning,
                stacklevel=5,
            )

    def _set_scales(
        self, tower: Any, tokens: list[np.ndarray], first: torch.Tensor
    ) -> None:
        """Set the patch scores of the references, and what they say of others."""
        matcher = self._matcher(tower.model.device)
        n = len(self.reference_ids_)
        if n > 1:
            batch_size = check_clip(self.clip).batch_size
            if self.max_patches is None:
                scores = matcher.leave_one_out(batch_size)
            else:
                photos = _on_device([x[:, 0] for x in tokens], tower.model.device)
                scores = matcher.one_by_one(photos, batch_size)
            patch_scores = scores.movedim(1, 0).cpu().numpy()
            self.reference_patch_scores_ = patch_scores
        else:
            from .._clip.patch_tokens import turned

            copies = [self._scored(tower, matcher, x)[0] for x in turned(first, 8)[1:]]
            patch_scores = np.concatenate(copies)
            self.reference_patch_scores_ = np.full_like(patch_scores[:1], np.nan)
        # Those of a single reference stand for its turned copies.
        sizes = np.resize(self.reference_sizes_, (len(patch_scores), 2)).tolist()
        out = self._ignored_patches(sizes, patch_scores.shape[2:])
        self.patch_scale_ = scale_of(np.moveaxis(patch_scores, 1, 3)[~out])
        self.image_scale_ = scale_of(self._image_scores(patch_scores, sizes))
        own = self._image_scores(self.reference_patch_scores_, sizes[:n])
        self.reference_scores_ = SPREADS - deviation_of(own, self.image_scale_)

    def _set_thresholds(self) -> None:
        self._reset_offset()
        if len(self.reference_ids_) == 1 and (
            self.contamination != "auto" or self.pixel_contamination != "auto"
        ):
            raise ValueError(
                f"contamination={self.contamination!r}, "
                f"pixel_contamination={self.pixel_contamination!r}: expected 'auto' "
                "with a single reference, which has no other to be compared with."
            )
        if self.contamination != "auto":
            share = float(self.contamination)
            self.offset_ = quantile_offset(self.reference_scores_, share)
        if self.pixel_contamination != "auto":
            maps = self.iter_reference_maps(size="model")
            self.pixel_offset_ = pixel_quantile(maps, float(self.pixel_contamination))

    # -- scores -----------------------------------------------------------------------

    def is_reference(self, X: Any) -> np.ndarray:
        """Return which of the photos are references.

        Parameters
        ----------
        X : sequence of path, PIL.Image or array, or one array
            The photos.

        Returns
        -------
        ndarray of shape (n_images,), dtype bool
            True for photos that are references, pixel by pixel, as the model sees them.

        Raises
        ------
        ImageReadError
            If photos cannot be read.
        """
        check_is_fitted(self)
        batches = pixel_batches(check_clip(self.clip), self._check_images(X))
        ids = [name for pixels, _ in batches for name in photo_ids(pixels)]
        self._check_same_clip()
        return np.isin(ids, self.reference_ids_)

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        scores = [
            self._image_scores(patch_scores, sizes)
            for patch_scores, sizes in self._iter_patch_scores(self._check_images(X))
        ]
        return SPREADS - deviation_of(np.concatenate(scores), self.image_scale_)

    def _image_scores(
        self, patch_scores: np.ndarray, sizes: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """Return the scores (n, n_places) of photos of some heights and widths."""
        counted = ~self._ignored_patches(sizes, patch_scores.shape[2:])
        scores = []
        for patches, here in zip(patch_scores.astype(np.float64), counted, strict=True):
            kept = np.sort(patches[:, here], axis=1)
            count = max(1, int(float(self.image_share) * kept.shape[1] + 1e-9))
            scores.append(kept[:, -count:].mean(axis=1))
        return np.stack(scores)

    def _ignored_patches(
        self, sizes: Sequence[Sequence[int]], grid: tuple[int, ...]
    ) -> np.ndarray:
        """Return which patches (n, rows, columns) of photos do not count."""
        result = np.zeros((len(sizes), *grid), dtype=bool)
        if self.ignore is None:
            return result
        if check_clip(self.clip).resize == "crop":
            raise ValueError(
                "With resize='crop' patches do not cover a photo, so `ignore` has no "
                "place there: use OpenCLIP(..., resize='squash')."
            )
        known: dict[tuple[int, ...], np.ndarray] = {}
        for number, size in enumerate(map(tuple, sizes)):
            if size not in known:
                pixels = ignored_pixels(self.ignore, size)
                known[size] = shrunk(pixels, (grid[0], grid[1])) >= 0.5
            if known[size].all():
                raise ValueError(
                    f"`ignore` covers all patches of a photo of size {size}."
                )
            result[number] = known[size]
        return result

    def _iter_patch_scores(
        self, images: Sequence[Any]
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, int]]]]:
        """Yield the patch scores of a batch, and (height, width) of each image."""
        found = read_once.kept(images, self)
        if found is not None:
            yield from found
            return
        start = 0
        for scores, sizes in self._new_patch_scores(images):
            each = [(scores[i : i + 1], [size]) for i, size in enumerate(sizes)]
            read_once.keep(images, start, self, each)
            start += len(sizes)
            yield scores, sizes

    def _new_patch_scores(
        self, images: Sequence[Any]
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, int]]]]:
        tower = self._tower()
        self._check_same_clip()
        matcher = self._matcher(tower.model.device)
        numbers = {name: i for i, name in enumerate(self.reference_ids_.tolist())}
        start = 0
        for pixels, sizes, put in keyed_pixel_batches(check_clip(self.clip), images):
            # References have been compared with all others.
            own = np.array([numbers.get(name, -1) for name in photo_ids(pixels)])
            if len(numbers) == 1:
                _check_others(own, images, start)
            start += len(own)
            scores = self.reference_patch_scores_[own]
            others = np.flatnonzero(own < 0)
            if len(others):
                found, embeddings = self._scored(tower, matcher, pixels[others])
                scores[others] = found
                put(others, embeddings)
            yield scores, sizes

    def _scored(
        self, tower: Any, matcher: PatchMatcher, pixels: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return patch scores (n, n_places, rows, columns), and embeddings."""
        embeddings = []

        def scores(part: slice) -> np.ndarray:
            tokens, features = tower.encode(pixels[part], self.layers_)
            found = matcher.scores(tokens).movedim(1, 0).cpu().numpy()
            embeddings.append(features.cpu().numpy())
            return found

        found = tower.model.within_memory("photos to compare", len(pixels), scores)
        return found, np.concatenate(embeddings)

    # -- maps -------------------------------------------------------------------------

    def iter_reference_maps(
        self, *, size: str | tuple[int, int] = "image"
    ) -> Iterator[np.ndarray]:
        """Yield the anomaly map of each reference, compared with all others.

        For a folder that judges itself: nothing is read or encoded again.

        Parameters
        ----------
        size : "image", "model" or (int, int), default="image"
            Height and width of the maps.

        Returns
        -------
        iterator of ndarray of shape (height, width), dtype float32
            Maps in [0, 1] in the order of `reference_ids_`; NaN for a single reference.
        """
        check_is_fitted(self)
        size = check_size(size, check_clip(self.clip))
        return self._iter_reference_maps(size)

    def _iter_reference_maps(self, size: str | tuple[int, int]) -> Iterator[np.ndarray]:
        for scores, sizes in zip(
            self.reference_patch_scores_, self.reference_sizes_.tolist(), strict=True
        ):
            yield self._map(scores, tuple(sizes), size)

    def _iter_maps(
        self,
        images: Sequence[Any],
        size: str | tuple[int, int],
        class_name: str | list[str] | None,
    ) -> Iterator[np.ndarray]:
        for patch_scores, sizes in self._iter_patch_scores(images):
            for scores, image_size in zip(patch_scores, sizes, strict=True):
                yield self._map(scores, image_size, size)

    def _map(
        self,
        patch_scores: np.ndarray,
        image_size: tuple[int, int],
        size: str | tuple[int, int],
    ) -> np.ndarray:
        """Return the map of a photo at the size that was asked for."""
        deviation = deviation_of(patch_scores[np.newaxis], self.patch_scale_)
        # As of the median of all, so that what is ignored leaks nowhere.
        deviation[self._ignored_patches([image_size], patch_scores.shape[1:])] = 0
        anomaly_map = upsampled(deviation[0], self.input_size_, sigma=self.sigma)
        anomaly_map = sized(expit(anomaly_map - SPREADS), size, image_size)
        if self.ignore is not None:
            pixels = ignored_pixels(self.ignore, image_size)
            anomaly_map[shrunk(pixels, anomaly_map.shape) >= 0.5] = 0
        return anomaly_map

    # -- what the parameters stand for -------------------------------------------------

    def _tower(self) -> Any:
        from .._clip.patch_tokens import PatchTower

        return PatchTower(load(check_clip(self.clip)))

    def _matcher(self, device: str) -> PatchMatcher:
        both = ("anywhere", "same")
        tokens = _on_device(self.reference_tokens_, device)
        if hasattr(self, "reference_owners_"):
            self._check_thinned()
            if len(tokens) != len(self.layers_) * len(tuple(self.neighborhoods)):
                raise ValueError(
                    f"neighborhoods={self.neighborhoods!r} was set after fit, which "
                    "kept patches of others: fit again."
                )
            owners = _on_device(self.reference_owners_, device)
            return ThinnedMatcher(
                [Kept(*kept) for kept in zip(tokens, owners, strict=True)],
                self.neighborhoods,
            )
        return PatchMatcher(
            tokens,
            self.neighborhoods,
            both if self.location_ == "both" else (self.location_,),
            self.radius,
            self.n_neighbors,
        )

    def _kept_or_new(
        self, tower: Any, pixels: torch.Tensor, new: Callable[[list[int]], Any]
    ) -> list[np.ndarray]:
        """Return the tokens of references, by `new` those of rows that are not kept."""
        if isinstance(self.n_neighbors, float):
            # A folder that judges itself is another one tomorrow.
            return list(new(list(range(len(pixels)))))
        kept = KeptTokens(check_clip(self.clip), tower, self.layers_, self.orientations)
        return kept.tokens(pixels, new)

    def _encode(
        self, tower: Any, pixels: torch.Tensor
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Return tokens (n, orientations, rows, columns, width), and embeddings."""
        from .._clip.patch_tokens import turned

        embeddings = []
        shapes = [tower.shapes[block - 1] for block in self.layers_]
        ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
        copies = []
        for copy in turned(pixels, self.orientations):

            def encode(part: slice, copy: torch.Tensor = copy) -> np.ndarray:
                tokens, features = tower.encode(copy[part], self.layers_)
                flat = [block.flatten(1).cpu().numpy() for block in tokens]
                embeddings.append(features.cpu().numpy())
                return np.concatenate(flat, axis=1)

            copies.append(tower.model.within_memory("images", len(pixels), encode))
        blocks = np.split(np.stack(copies, axis=1), ends, axis=2)
        tokens = [
            block.reshape(*block.shape[:2], *shape)
            for block, shape in zip(blocks, shapes, strict=True)
        ]
        # The photos as they are come first.
        return tokens, np.concatenate(embeddings)[: len(pixels)]


def _on_device(arrays: Sequence[np.ndarray], device: str) -> list[torch.Tensor]:
    import torch

    # torch takes no arrays that cannot be written, such as mapped files.
    writeable = [a if a.flags.writeable else a.copy() for a in arrays]
    return [torch.from_numpy(a).to(device) for a in writeable]


def shrunk(mask: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return which share of each cell of a grid a mask covers: (rows, columns)."""
    from PIL import Image

    if mask.shape == tuple(size):
        return mask
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX))


def scale_of(scores: np.ndarray) -> np.ndarray:
    """Return centre and spread at each place (columns of scores), and of the larger."""
    places = np.stack([center_and_spread(s) for s in np.moveaxis(scores, 1, 0)])
    if len(places) == 1:
        return places
    larger = center_and_spread(_standardized(scores, places).max(axis=1))
    return np.vstack([places, larger])


def deviation_of(scores: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return by how many spreads scores (n, n_places, ...) exceed the centre."""
    if len(scale) == 1:
        return _standardized(scores, scale)[:, 0]
    center, spread = scale[-1]
    return (_standardized(scores, scale[:-1]).max(axis=1) - center) / spread


def _standardized(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    shape = (1, -1) + (1,) * (scores.ndim - 2)
    center, spread = (column.reshape(shape) for column in places.T)
    return (scores - center) / spread


def check_layers(
    layers: Any, shapes: Sequence[tuple[int, int, int]]
) -> tuple[int, ...]:
    """Return the blocks that are compared, counted from 1."""
    depth = len(shapes)
    if layers is None:
        # The first stages of convolutional towers have very fine grids.
        most = _FINEST * shapes[-1][0] * shapes[-1][1]
        usable = [n for n in range(depth) if shapes[n][0] * shapes[n][1] <= most]
        ends = {(len(usable) * third + 1) // 3 for third in (1, 2, 3)}
        return tuple(usable[end - 1] + 1 for end in sorted(ends - {0}))
    return check_blocks(layers, depth)


def _check_neighborhoods(neighborhoods: Any) -> None:
    try:
        sides = tuple(neighborhoods)
        valid = len(sides) > 0 and all(
            is_whole(side) and side % 2 == 1 for side in sides
        )
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(
            f"neighborhoods={neighborhoods!r}: expected a sequence of odd numbers, "
            "such as (1, 3)."
        )


def _check_others(own: np.ndarray, images: Sequence[Any], start: int) -> None:
    """Check that none of the images from `start` on is the only reference."""
    reason = "it is the only reference of the detector: nothing is left to compare with"
    failures = [
        (index, image_name(read_once.given(images[index])), reason)
        for index in (start + np.flatnonzero(own >= 0)).tolist()
    ]
    if failures:
        raise ImageReadError(failures)
