"""`PromptDisplay`: prompts and images in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._clip.settings import OpenCLIP, check_clip
from .._prompts import PromptSet, check_prompts
from ..metrics import to_outlier_labels
from ._axes import ANOMALOUS, NEUTRAL, NORMAL, axes_of


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
        self.ax_, self.figure_ = axes_of(ax)
        for name, points in self.points.items():
            color = NEUTRAL
            if name.startswith("normal"):
                color = NORMAL
            elif name.startswith("anomalous"):
                color = ANOMALOUS
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
