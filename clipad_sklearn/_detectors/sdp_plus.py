"""`SDPPlusDetector`: SDP with layers trained on images with masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import ndimage
from scipy.special import expit
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from .._clip.settings import OpenCLIP, check_clip
from .._files import check_not_special, replacing
from .._masks import ResizedMasks
from .._prompts import PromptSet
from .._validation import all_or_nothing
from .class_names import names_of_images
from .maps import upsampled
from .sdp import SDPDetector, stage_ends
from .sdp_training import PatchTokens, Training, train_layers

if TYPE_CHECKING:
    import torch


class SDPPlusDetector(SDPDetector):
    """Locate anomalies with CLIP-AD's dual path and layers trained on masks.

    As :class:`SDPDetector`, and for each stage one linear layer that projects the
    original patch tokens to where the prompts are. The layers are trained on
    auxiliary images with masks, of other objects than those to be inspected.

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
        What cosines of images and of trained layers are divided by. Where the prompts'
        vectors lie far apart, as with ``"tiny"``, the default saturates P_g below and
        training stalls: there 0.2 is better.
    layers : sequence of int or None, default=None
        The last block of each stage, counted from 1 and rising; None is four stages.
    sigma : float, default=8.0
        Standard deviation of the Gaussian filter on maps, in pixels of the model's
        input. 0 is no filter.
    alias_compat : bool, default=False
        Whether to reproduce a side effect of the published code, see
        :class:`SDPDetector`. Layers trained by the published code need it.
    image_score : {"prompts", "prompts+map"}, default="prompts"
        As in :class:`SDPDetector`. The range of ``"prompts+map"`` is that of the
        images given to `fit`.
    focal_weight : float, default=1.0
        Weight of the focal loss.
    focal_gamma : float, default=2.0
        Exponent of the focal loss.
    dice_weight : float, default=1.0
        Weight of the dice loss.
    learning_rate : float, default=1e-4
        Step size of Adam, constant during training.
    n_epochs : int, default=5
        Number of passes over the images.
    batch_size : int, default=8
        Number of images in a training step.
    shuffle : bool, default=False
        Whether the images come in a new order in each epoch.
    warm_start : bool, default=False
        Whether `fit` starts from the existing layers, of an earlier `fit` or of
        `load_layers`. Then `masks` may be None, and the layers stay as they are.
    contamination : "auto" or float, default="auto"
        ``"auto"`` sets `offset_` to 0. A number in (0, 0.5] is the share of the images
        given to `fit` that are called anomalous.
    pixel_contamination : "auto" or float, default="auto"
        ``"auto"`` sets `pixel_offset_` to 0.5. A number in (0, 0.5] is the share of the
        pixels of the images given to `fit` that are called anomalous.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial layers and of the order of images.

    Attributes
    ----------
    coefs_ : ndarray of shape (n_stages, n_features, width), dtype float32
        Weights of the layers.
    intercepts_ : ndarray of shape (n_stages, n_features), dtype float32
        Intercepts of the layers.
    loss_curve_ : list of float
        Mean training loss of each epoch of the last training.
    prompt_detector_ : PromptDetector
        The fitted prompts.
    score_range_ : ndarray of shape (2, 2)
        As in :class:`SDPDetector`.
    offset_ : float
        The threshold on the margin. It may be set after fitting.
    pixel_offset_ : float
        The threshold on anomaly maps: pixels above it are anomalous. It may be set
        after fitting.
    classes_ : ndarray of shape (2,)
        ``[-1, 1]``.

    Raises
    ------
    ImageReadError
        From `fit`, if images or masks cannot be read.
    ValueError
        From `fit`, if a parameter is out of range, masks are missing or of another
        size than their images, none of them has an anomalous pixel, or the vision tower
        has no patch tokens that can be projected.

    See Also
    --------
    SDPDetector : Needs no training.

    Notes
    -----
    With the original patch tokens x of stage g, its layer (W, b) and the prompts'
    vectors t_a, t_n, the logit is (t_a - t_n) . z / (temperature norm(z)) with
    z = W x + b, enlarged bilinearly with aligned corners, and P_g its logistic
    function. The map is
    sum P_g + M with the map M of SDP, smoothed [1]_. The loss is the sum over stages of
    the focal loss of P_g and the dice loss of its anomalous channel, minimised by
    Adam.

    `anomaly_maps` returns (1 + sum P_g / n_stages + M / n_stages) / 3, which ranks as
    the published sum, lies in [0, 1], and is 1/2 where neither state is nearer.

    The paper's text was not available to us; this is our reading of its public
    implementation, from which the defaults of training are. The published layers were
    trained on the test images of another data set, at a `sigma` of 2 or 8 by data
    set, and with ``alias_compat=True``. Published checkpoints are not read by
    `load_layers`. The initial layers are those of a torch linear layer, drawn by
    numpy.

    References
    ----------
    .. [1] X. Chen et al., "CLIP-AD: A Language-Guided Staged Dual-Path Model for
       Zero-shot Anomaly Detection", arXiv:2311.00453, 2023.

    Examples
    --------
    >>> from clipad_sklearn import SDPPlusDetector
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> data = make_defect_images(8, size=96, random_state=0)
    >>> detector = SDPPlusDetector(
    ...     "tiny", temperature=0.2, sigma=4, n_epochs=3, random_state=0
    ... )
    >>> detector = detector.fit(data.images, data.masks)
    >>> detector.loss_curve_[-1] < detector.loss_curve_[0]
    True
    >>> detector.anomaly_maps(data.images[:2])[0].shape
    (96, 96)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "focal_weight": [Interval(Real, 0, None, closed="left")],
        "focal_gamma": [Interval(Real, 0, None, closed="left")],
        "dice_weight": [Interval(Real, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="left")],
        "n_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
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
        focal_weight: float = 1.0,
        focal_gamma: float = 2.0,
        dice_weight: float = 1.0,
        learning_rate: float = 1e-4,
        n_epochs: int = 5,
        batch_size: int = 8,
        shuffle: bool = False,
        warm_start: bool = False,
        contamination: float | str = "auto",
        pixel_contamination: float | str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        super().__init__(
            clip,
            prompts=prompts,
            class_name=class_name,
            aggregation=aggregation,
            aggregation_params=aggregation_params,
            temperature=temperature,
            layers=layers,
            sigma=sigma,
            alias_compat=alias_compat,
            image_score=image_score,
            contamination=contamination,
            pixel_contamination=pixel_contamination,
        )
        self.focal_weight = focal_weight
        self.focal_gamma = focal_gamma
        self.dice_weight = dice_weight
        self.learning_rate = learning_rate
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.warm_start = warm_start
        self.random_state = random_state

    @all_or_nothing
    def fit(
        self, X: Any = None, masks: Any = None, class_name: Any = None
    ) -> SDPPlusDetector:
        """Train the layers on images with masks.

        Parameters
        ----------
        X : sequence of images or None, default=None
            Auxiliary images. None will do where nothing is trained and no threshold
            asked for: with ``warm_start=True`` and existing layers.
        masks : sequence of path, array or None; or None, default=None
            For each image a mask of its size, or None for an image without anomaly.
            Arrays hold 0 and 1, 0 and 255, or bool; in files anomalous pixels are above
            0.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show. None is the parameter of that name. One string is
            also the default of later calls.

        Returns
        -------
        SDPPlusDetector
            The fitted detector.
        """
        self._check_fit(X)
        X = None if X is None else self._check_images(X)
        trained = self.warm_start and hasattr(self, "coefs_")
        if masks is None and not trained:
            raise ValueError(
                "SDPPlusDetector learns from images with masks, but masks is None. "
                "Call fit(X, masks), or load_layers(path) in place of fit."
            )
        if masks is not None and X is None:
            raise ValueError("There are masks, but X is None: pass their images.")
        self._fit_prompts(class_name)
        if masks is not None:
            self._train(X, masks, class_name)
        else:
            self._check_layers(self.coefs_, self.intercepts_, "The existing layers")
        self._set_thresholds(X, class_name)
        return self

    def fit_predict(
        self, X: Any, masks: Any = None, class_name: Any = None
    ) -> np.ndarray:
        """Train the layers, and return the verdict for each image.

        Parameters
        ----------
        X : sequence of images
            The images.
        masks : sequence of path, array or None; or None, default=None
            As for `fit`.
        class_name : str, array-like of str of shape (n_images,) or None, default=None
            What the images show, for both.

        Returns
        -------
        ndarray of shape (n_images,), dtype int
            +1 for normal, -1 for anomalous.
        """
        return super().fit_predict(X, masks, class_name)

    # -- training ------------------------------------------------------------------

    def _train(self, images: Sequence[Any], masks: Any, class_name: Any) -> None:
        clip = clone(check_clip(self.clip)).set_params(batch_size=self.batch_size)
        if clip.resize == "crop":
            raise ValueError(
                "With resize='crop' masks do not fit what the model sees. Use "
                "OpenCLIP(..., resize='squash')."
            )
        tower = self._tower()
        ends = stage_ends(self.layers, tower.depth)
        targets = ResizedMasks(masks, len(images), tower.input_size)
        if class_name is not None and not isinstance(class_name, str):
            class_name = names_of_images(class_name, len(images))
        prototypes = self._prototypes(class_name).astype(np.float32)
        random_state = check_random_state(self.random_state)
        shape = (len(ends), prototypes.shape[2], tower.width)
        layers = self._initial_layers(shape, random_state)
        self.coefs_, self.intercepts_, self.loss_curve_ = train_layers(
            layers,
            PatchTokens(clip, tower, ends, self.alias_compat, images, targets.sizes),
            targets,
            prototypes[:, 0] - prototypes[:, 1],
            Training(
                temperature=self.temperature,
                focal_weight=self.focal_weight,
                focal_gamma=self.focal_gamma,
                dice_weight=self.dice_weight,
                learning_rate=self.learning_rate,
                n_epochs=self.n_epochs,
                shuffle=self.shuffle,
            ),
            random_state,
        )

    def _initial_layers(
        self, shape: tuple[int, int, int], random_state: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.warm_start and hasattr(self, "coefs_"):
            self._check_layers(self.coefs_, self.intercepts_, "The existing layers")
            return self.coefs_, self.intercepts_
        bound = shape[2] ** -0.5
        coefs = random_state.uniform(-bound, bound, shape).astype(np.float32)
        intercepts = random_state.uniform(-bound, bound, shape[:2]).astype(np.float32)
        return coefs, intercepts

    # -- maps ------------------------------------------------------------------------

    def _model_maps(
        self, pixels: torch.Tensor, class_names: str | list[str] | None
    ) -> np.ndarray:
        tower = self._tower()
        stages, trained = tower.dual_path_scores(
            pixels,
            stage_ends(self.layers, tower.depth),
            self.alias_compat,
            self._prototypes(class_names),
            self.coefs_,
            self.intercepts_,
        )
        size = tower.input_size
        logits = upsampled(trained, size, align_corners=True) / self.temperature
        maps = expit(logits).mean(axis=0)
        if self.sigma > 0:
            maps = ndimage.gaussian_filter(maps, (0, self.sigma, self.sigma))
        surgery = upsampled(stages.mean(axis=0), size, sigma=self.sigma)
        return (1 + maps + surgery) / 3

    # -- keeping layers ----------------------------------------------------------------

    def save_layers(self, path: str | os.PathLike[str]) -> None:
        """Save the trained layers in a safetensors file.

        Parameters
        ----------
        path : str or PathLike
            The file; it is replaced once the new one is complete.
        """
        from safetensors.numpy import save_file

        check_is_fitted(self, "coefs_")
        ends = stage_ends(self.layers, self._tower().depth)
        settings = {
            "layers": " ".join(map(str, ends)),
            "alias_compat": str(bool(self.alias_compat)),
        }
        arrays = {"coefs": self.coefs_, "intercepts": self.intercepts_}
        with replacing(path) as temporary:
            save_file(arrays, temporary, metadata=settings)

    @all_or_nothing
    def load_layers(self, path: str | os.PathLike[str]) -> SDPPlusDetector:
        """Load layers that `save_layers` saved, in place of `fit`.

        The prompts are encoded too, so that the detector is fitted, with the
        thresholds of ``contamination="auto"`` and ``pixel_contamination="auto"``. For
        thresholds from images call ``fit(X)`` afterwards, with ``warm_start=True``.

        Parameters
        ----------
        path : str or PathLike
            The file.

        Returns
        -------
        SDPPlusDetector
            The fitted detector.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file does not hold such layers, or they were trained with another
            `layers`, `alias_compat` or kind of CLIP. Another CLIP of the same
            dimensions cannot be recognised.
        """
        from safetensors import SafetensorError, safe_open

        path = os.fspath(path)
        if not os.path.exists(path):
            raise FileNotFoundError(f"path={path!r}: there is no such file.")
        if os.path.isdir(path):
            raise ValueError(f"path={path!r}: expected a file of layers, not a folder.")
        check_not_special(path)
        try:
            with safe_open(path, framework="np") as file:
                settings = file.metadata() or {}
                coefs, intercepts = (
                    file.get_tensor(name) for name in ("coefs", "intercepts")
                )
        except SafetensorError as error:
            raise ValueError(
                f"{path!r} does not hold layers that save_layers saved ({error})."
            ) from error
        ends = " ".join(map(str, stage_ends(self.layers, self._tower().depth)))
        for name, here in (
            ("layers", ends),
            ("alias_compat", str(bool(self.alias_compat))),
        ):
            there = settings.get(name)
            if there != here:
                raise ValueError(
                    f"The layers in {path!r} were trained with {name}={there}, but "
                    f"this detector has {name}={here}."
                )
        self._check_layers(coefs, intercepts, f"The layers in {path!r}")
        for array in (coefs, intercepts):
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(
                    f"The layers in {path!r} are not all finite numbers of 32 bits: "
                    "the file is damaged."
                )
        self._fit_prompts(None)
        self.coefs_, self.intercepts_ = coefs, intercepts
        self.__dict__.pop("score_range_", None)  # of other layers
        self._reset_offset()
        return self

    def _check_layers(
        self, coefs: np.ndarray, intercepts: np.ndarray, what: str
    ) -> None:
        tower = self._tower()
        n_stages = len(stage_ends(self.layers, tower.depth))
        expected = (n_stages, tower.model.embedding_width, tower.width)
        if coefs.shape != expected or intercepts.shape != expected[:2]:
            raise ValueError(
                f"{what} have shape {coefs.shape}, but this detector needs {expected}: "
                "stages, features of an embedding and width of the vision tower of "
                f"clip={self.clip!r}."
            )
