"""Displays of scores, of searches and of embeddings; see `plotting`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._clip import OpenCLIP, check_clip
from ._prompts import PromptSet, check_prompts
from .metrics import to_outlier_labels

_NORMAL, _ANOMALOUS, _NEUTRAL = "tab:blue", "tab:red", "tab:gray"


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
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        threshold = getattr(last, "offset_", None)
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
        self.ax_, self.figure_ = _axes(ax)
        edges = np.histogram_bin_edges(self.margins, bins=bins)
        if self.is_anomalous is None:
            self.ax_.hist(self.margins, edges, color=_NEUTRAL, label="all")
        else:
            for name, color, chosen in (
                ("normal", _NORMAL, ~self.is_anomalous),
                ("anomalous", _ANOMALOUS, self.is_anomalous),
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


class SearchDisplay:
    """Results of a search along one parameter.

    The other parameters of the grid make one curve for each of their combinations.
    Seeds, which are parameters whose name ends in ``random_state``, are averaged, and
    their spread is drawn as a band. Make one with `from_estimator` or
    `from_predictions`.

    Parameters
    ----------
    values : list
        Values of the parameter, in the order of the search.
    curves : dict of str to ndarray of shape (n_values, n_repetitions)
        Scores of each curve by its label. NaN where there is none.
    param_name : str
        Name of the parameter.
    score_name : str, default="AUROC"
        Name of the score.

    Attributes
    ----------
    ax_ : Axes
        Where the curves are drawn.
    figure_ : Figure
        The figure of the axes.
    lines_ : list of Line2D
        The curves.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from clipad_sklearn.plotting import SearchDisplay
    >>> results = {
    ...     "params": [{"k": 1, "seed__random_state": s} for s in (0, 1)]
    ...     + [{"k": 10, "seed__random_state": s} for s in (0, 1)],
    ...     "mean_test_score": [0.6, 0.7, 0.8, 0.9],
    ... }
    >>> display = SearchDisplay.from_predictions(results, "k")
    >>> [float(round(y, 2)) for y in display.lines_[0].get_ydata()]
    [0.65, 0.85]
    """

    def __init__(
        self,
        values: list[Any],
        curves: dict[str, np.ndarray],
        *,
        param_name: str,
        score_name: str = "AUROC",
    ) -> None:
        self.values = values
        self.curves = curves
        self.param_name = param_name
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        search: Any,
        param_name: str,
        *,
        score_name: str = "AUROC",
        **plot_params: Any,
    ) -> SearchDisplay:
        """Draw the results of a fitted search.

        Parameters
        ----------
        search : GridSearchCV or its kind
            A fitted search, with `cv_results_`.
        param_name : str
            The parameter along the horizontal axis, by its full name in the grid.
        score_name : str, default="AUROC"
            Name of the score.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        SearchDisplay
            The display.
        """
        if not hasattr(search, "cv_results_"):
            raise TypeError(
                f"{type(search).__name__} has no cv_results_: expected a fitted "
                "GridSearchCV or its kind."
            )
        return cls.from_predictions(
            search.cv_results_, param_name, score_name=score_name, **plot_params
        )

    @classmethod
    def from_predictions(
        cls,
        cv_results: Mapping[str, Any],
        param_name: str,
        *,
        score_name: str = "AUROC",
        **plot_params: Any,
    ) -> SearchDisplay:
        """Draw given results.

        Parameters
        ----------
        cv_results : mapping
            With ``"params"``, a list of dicts of values by name, and
            ``"mean_test_score"``, as `cv_results_` of a search has them.
        param_name : str
            The parameter along the horizontal axis.
        score_name : str, default="AUROC"
            Name of the score.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        SearchDisplay
            The display.

        Raises
        ------
        ValueError
            If the parameter was not searched.
        """
        scores = cv_results["mean_test_score"]
        found: dict[str, dict[str, list[float]]] = {}
        values: dict[str, Any] = {}  # lists and tuples are values too: by their repr
        searched = sorted({name for params in cv_results["params"] for name in params})
        if param_name not in searched:
            raise ValueError(
                f"{param_name!r} was not searched. Use one of {', '.join(searched)}."
            )
        # Parameters that never change tell no curves apart.
        varying = [
            name
            for name in searched
            if name != param_name
            and not name.endswith("random_state")
            and len({repr(params.get(name)) for params in cv_results["params"]}) > 1
        ]
        for params, score in zip(cv_results["params"], scores, strict=True):
            if param_name not in params:
                continue
            value = params[param_name]
            values.setdefault(repr(value), value)
            label = ", ".join(
                f"{name.split('__')[-1]}={params[name]}"
                for name in varying
                if name in params
            )
            points = found.setdefault(label, {})
            points.setdefault(repr(value), []).append(float(score))
        if all(_is_number(value) for value in values.values()):
            values = dict(sorted(values.items(), key=lambda item: item[1]))
        most = max(len(p) for points in found.values() for p in points.values())
        curves = {}
        for label, points in found.items():
            curves[label] = np.full((len(values), most), np.nan)
            for row, key in zip(curves[label], values, strict=True):
                repetitions = points.get(key, [])
                row[: len(repetitions)] = repetitions
        display = cls(
            list(values.values()), curves, param_name=param_name, score_name=score_name
        )
        return display.plot(**plot_params)

    def plot(self, ax: Any = None, *, xscale: str = "auto") -> SearchDisplay:
        """Draw.

        Parameters
        ----------
        ax : Axes or None, default=None
            Where to draw. None makes a figure.
        xscale : {"auto", "linear", "log"}, default="auto"
            Scale of numbers on the horizontal axis. ``"auto"`` is logarithmic for
            positive numbers over a factor of 20 or more.

        Returns
        -------
        SearchDisplay
            The display.
        """
        self.ax_, self.figure_ = _axes(ax)
        numeric = all(_is_number(value) for value in self.values)
        x = np.asarray(self.values if numeric else range(len(self.values)), float)
        self.lines_ = []
        for label, scores in self.curves.items():
            # Points without any score are left out, so that no mean is empty.
            known = np.isfinite(scores).any(axis=1)
            some = scores[known]
            mean = np.nanmean(some, axis=1)
            (line,) = self.ax_.plot(x[known], mean, "o-", label=label or None)
            self.lines_.append(line)
            if scores.shape[1] > 1:
                spread = np.nanstd(some, axis=1)
                self.ax_.fill_between(
                    x[known],
                    mean - spread,
                    mean + spread,
                    color=line.get_color(),
                    alpha=0.2,
                    linewidth=0,
                )
        name = self.param_name.split("__")[-1]
        self.ax_.set(xlabel=name, ylabel=self.score_name)
        if numeric and xscale == "auto":
            wide = x.min() > 0 and x.max() >= 20 * x.min()
            xscale = "log" if wide else "linear"
        if numeric:
            self.ax_.set_xscale(xscale)
        if xscale == "log" or not numeric:
            texts = [f"{v:g}" if numeric else str(v) for v in self.values]
            self.ax_.set_xticks(x, texts)
            self.ax_.minorticks_off()
        if any(self.curves):
            self.ax_.legend(fontsize="small")
        return self


class PromptDisplay:
    """Embeddings of prompts and images in two dimensions.

    Texts and images of a CLIP lie in two regions of one space. The display shows this
    gap, and whether normal and anomalous lie apart in the same direction in both. Make
    one with `from_estimator` or `from_predictions`.

    Parameters
    ----------
    points : dict of str to ndarray of shape (n, 2)
        Points by group.
    gap : float
        Distance of the mean prompt from the mean image, in the whole space.
    explained : tuple of (float, float)
        Share of the variance along each axis.

    Attributes
    ----------
    ax_ : Axes
        Where the points are drawn.
    figure_ : Figure
        The figure of the axes.

    Notes
    -----
    The axes are the two first principal components of all embeddings together.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from clipad_sklearn.datasets import make_defect_images
    >>> from clipad_sklearn.plotting import PromptDisplay
    >>> data = make_defect_images(6, size=64, random_state=0)
    >>> display = PromptDisplay.from_estimator("tiny", data.images, data.target)
    >>> sorted(display.points)
    ['anomalous images', 'anomalous prompts', 'normal images', 'normal prompts']
    """

    def __init__(
        self,
        points: dict[str, np.ndarray],
        *,
        gap: float,
        explained: tuple[float, float],
    ) -> None:
        self.points = points
        self.gap = gap
        self.explained = explained

    @classmethod
    def from_estimator(
        cls,
        clip: OpenCLIP | str | None,
        X: Any,
        y: ArrayLike | None = None,
        *,
        prompts: str | PromptSet | tuple[Sequence[str], Sequence[str]] = "winclip",
        class_name: str = "object",
        **plot_params: Any,
    ) -> PromptDisplay:
        """Encode prompts and images, and draw them.

        Parameters
        ----------
        clip : OpenCLIP, str, PathLike or None
            Which CLIP, see :class:`~clipad_sklearn.OpenCLIP`.
        X : sequence of images
            The images.
        y : array-like of shape (n_images,) or None, default=None
            Labels of either convention, see `metrics`.
        prompts : str, PromptSet or (normal, anomalous), default="winclip"
            A preset or set of prompts, or two lists of prompts, such as those of
            `random_word_prompts`.
        class_name : str, default="object"
            What the images show; for presets and sets of prompts.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        PromptDisplay
            The display.
        """
        if isinstance(prompts, (str, PromptSet)):
            normal, anomalous = check_prompts(prompts).format(class_name)
        else:
            normal, anomalous = (list(texts) for texts in prompts)
        clip = check_clip(clip)
        return cls.from_predictions(
            clip.encode_text(normal),
            clip.encode_text(anomalous),
            clip.encode_image(X),
            y,
            **plot_params,
        )

    @classmethod
    def from_predictions(
        cls,
        normal_prompts: ArrayLike,
        anomalous_prompts: ArrayLike,
        images: ArrayLike,
        y: ArrayLike | None = None,
        **plot_params: Any,
    ) -> PromptDisplay:
        """Draw given embeddings.

        Parameters
        ----------
        normal_prompts, anomalous_prompts : array-like of shape (n, n_features)
            Embeddings of prompts.
        images : array-like of shape (n_images, n_features)
            Embeddings of images.
        y : array-like of shape (n_images,) or None, default=None
            Labels of either convention, see `metrics`.
        **plot_params : dict
            Passed on to `plot`.

        Returns
        -------
        PromptDisplay
            The display.

        Raises
        ------
        ValueError
            If widths or numbers differ.
        """
        from sklearn.decomposition import PCA

        normal, anomalous, images = (
            np.asarray(rows, dtype=np.float64)
            for rows in (normal_prompts, anomalous_prompts, images)
        )
        if len({rows.shape[-1] for rows in (normal, anomalous, images)}) > 1:
            raise ValueError(
                "Prompts and images must have the same number of features, got "
                f"{normal.shape}, {anomalous.shape} and {images.shape}. Encode them by "
                "the same CLIP."
            )
        groups = {"normal prompts": normal, "anomalous prompts": anomalous}
        if y is None:
            groups["images"] = images
        else:
            is_anomalous = to_outlier_labels(y)
            if len(is_anomalous) != len(images):
                raise ValueError(
                    f"There are {len(images)} images but {len(is_anomalous)} labels."
                )
            groups["normal images"] = images[~is_anomalous]
            groups["anomalous images"] = images[is_anomalous]
        texts = np.concatenate([normal, anomalous])
        pca = PCA(2, svd_solver="full").fit(np.concatenate([texts, images]))
        first, second = pca.explained_variance_ratio_
        display = cls(
            {name: pca.transform(rows) for name, rows in groups.items()},
            gap=float(np.linalg.norm(texts.mean(axis=0) - images.mean(axis=0))),
            explained=(float(first), float(second)),
        )
        return display.plot(**plot_params)

    def plot(self, ax: Any = None, *, alpha: float = 0.6) -> PromptDisplay:
        """Draw.

        Parameters
        ----------
        ax : Axes or None, default=None
            Where to draw. None makes a figure.
        alpha : float, default=0.6
            Opacity of the points, from 0 to 1.

        Returns
        -------
        PromptDisplay
            The display.
        """
        self.ax_, self.figure_ = _axes(ax)
        for name, points in self.points.items():
            color = _NEUTRAL
            if name.startswith("normal"):
                color = _NORMAL
            elif name.startswith("anomalous"):
                color = _ANOMALOUS
            marker = "^" if name.endswith("prompts") else "o"
            self.ax_.scatter(
                *points.T, s=18, c=color, marker=marker, alpha=alpha, label=name
            )
        first, second = (f"{share:.0%}" for share in self.explained)
        self.ax_.set(
            xlabel=f"component 1 ({first} of the variance)",
            ylabel=f"component 2 ({second} of the variance)",
            title=f"gap of prompts and images: {self.gap:.2f}",
        )
        self.ax_.legend(fontsize="small")
        return self


def _axes(ax: Any) -> tuple[Any, Any]:
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Plotting needs matplotlib: pip install clipad-sklearn[plot]"
        ) from error
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    return ax, ax.figure


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
