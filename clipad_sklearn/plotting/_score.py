"""`ScoreDisplay`: the distribution of margins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._detectors.class_names import last_step
from ..metrics import to_outlier_labels
from ._axes import ANOMALOUS, NEUTRAL, NORMAL, axes_of


class ScoreDisplay:
    """Distribution of margins by label, with the threshold.

    Make one with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    margins : ndarray of shape (n_samples,)
        Margins; higher is more normal.
    is_anomalous : ndarray of bool of shape (n_samples,) or None, default=None
        Which samples are anomalous, if known.
    threshold : float or None, default=None
        The threshold; samples below it are called anomalous.

    Attributes
    ----------
    ax_ : Axes
        Where the distributions are drawn.
    figure_ : Figure
        The figure of the axes.
    line_ : Line2D or None
        The threshold.

    See Also
    --------
    clipad_sklearn.calibrate_threshold : Sets the threshold from images.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from clipad_sklearn.plotting import ScoreDisplay
    >>> display = ScoreDisplay.from_predictions(
    ...     [2.1, 1.7, -0.3, 0.4], [1, 1, -1, -1], threshold=1.0
    ... )
    >>> display.ax_.get_xlabel()
    'margin'
    """

    def __init__(
        self,
        margins: np.ndarray,
        *,
        is_anomalous: np.ndarray | None = None,
        threshold: float | None = None,
    ) -> None:
        self.margins = margins
        self.is_anomalous = is_anomalous
        self.threshold = threshold

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: ArrayLike | None = None, **plot_params: Any
    ) -> ScoreDisplay:
        """Draw the margins that a fitted detector gives.

        Parameters
        ----------
        estimator : detector or Pipeline that ends in one
            A fitted detector with `score_samples`. Its `offset_` is the threshold.
        X : what the detector takes
            The samples.
        y : array-like of shape (n_samples,) or None, default=None
            Labels of either convention, see `metrics`.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        ScoreDisplay
            The display.
        """
        if not hasattr(estimator, "score_samples"):
            raise TypeError(
                f"{type(estimator).__name__} has no score_samples: expected a detector "
                "or a Pipeline that ends in one."
            )
        margins = estimator.score_samples(X)
        threshold = getattr(last_step(estimator), "offset_", None)
        return cls.from_predictions(margins, y, threshold=threshold, **plot_params)

    @classmethod
    def from_predictions(
        cls,
        margins: ArrayLike,
        y: ArrayLike | None = None,
        *,
        threshold: float | None = None,
        **plot_params: Any,
    ) -> ScoreDisplay:
        """Draw given margins.

        Parameters
        ----------
        margins : array-like of shape (n_samples,)
            Margins, as from `score_samples`; higher is more normal. NaN, for images
            that could not be read, is left out.
        y : array-like of shape (n_samples,) or None, default=None
            Labels of either convention, see `metrics`.
        threshold : float or None, default=None
            The threshold.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        ScoreDisplay
            The display.

        Raises
        ------
        ValueError
            If there is no finite margin, or `y` has another length or other labels.
        """
        margins = np.asarray(margins, dtype=np.float64)
        if margins.ndim != 1:
            raise ValueError(
                f"margins must be one number per sample, got shape {margins.shape}."
            )
        is_anomalous = None if y is None else to_outlier_labels(y)
        if is_anomalous is not None and len(is_anomalous) != len(margins):
            raise ValueError(
                f"There are {len(margins)} margins but {len(is_anomalous)} labels."
            )
        finite = np.isfinite(margins)
        if not finite.any():
            raise ValueError("There is no finite margin to show.")
        if is_anomalous is not None:
            is_anomalous = is_anomalous[finite]
        display = cls(margins[finite], is_anomalous=is_anomalous, threshold=threshold)
        return display.plot(**plot_params)

    def plot(self, ax: Any = None, *, bins: int | str = "auto") -> ScoreDisplay:
        """Draw.

        Parameters
        ----------
        ax : Axes or None, default=None
            Where to draw. None makes a figure.
        bins : int or str, default="auto"
            Number of bins, or a rule of :func:`numpy.histogram_bin_edges`.

        Returns
        -------
        ScoreDisplay
            The display.
        """
        self.ax_, self.figure_ = axes_of(ax)
        edges = np.histogram_bin_edges(self.margins, bins=bins)
        if self.is_anomalous is None:
            self.ax_.hist(self.margins, edges, color=NEUTRAL, label="all")
        else:
            for name, color, chosen in (
                ("normal", NORMAL, ~self.is_anomalous),
                ("anomalous", ANOMALOUS, self.is_anomalous),
            ):
                label = f"{name} ({int(chosen.sum())})"
                self.ax_.hist(
                    self.margins[chosen], edges, color=color, alpha=0.55, label=label
                )
        self.line_ = None
        if self.threshold is not None:
            self.line_ = self.ax_.axvline(
                self.threshold,
                color="black",
                linestyle="--",
                label=f"threshold {self.threshold:.3g}",
            )
        self.ax_.set(xlabel="margin", ylabel="images")
        self.ax_.legend()
        return self
