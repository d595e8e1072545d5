"""`SearchDisplay`: the scores of a search over a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._axes import axes_of


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
        search : GridSearchCV or another search
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
                "GridSearchCV or another search."
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
        # Parameters that never change distinguish no curves.
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
        self.ax_, self.figure_ = axes_of(ax)
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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
