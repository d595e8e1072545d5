"""Splits for model selection without training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["ZeroShotSplit"]


class ZeroShotSplit:
    """One split in which all samples are both for training and for testing.

    A zero-shot detector learns nothing from the labels of images, so nothing is
    gained by holding images back: each candidate of a search can be judged on all
    labelled images at once.

    See Also
    --------
    sklearn.model_selection.StratifiedKFold : For detectors that learn from images
        with labels, or to see how much a score varies.

    Notes
    -----
    The best score of a search is still optimistic, because the candidate was chosen
    by it. Report the score on other images.

    Examples
    --------
    >>> from clipad_sklearn.model_selection import ZeroShotSplit
    >>> ZeroShotSplit()
    ZeroShotSplit()
    >>> [(train, test)] = ZeroShotSplit().split(["a.png", "b.png", "c.png"])
    >>> train, test
    (array([0, 1, 2]), array([0, 1, 2]))
    """

    def split(
        self, X: Any = None, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the only split.

        Parameters
        ----------
        X : sequence of length n_samples or None, default=None
            Samples; only their number matters. None: it is taken from `y`.
        y : sequence of length n_samples or None, default=None
            Labels.
        groups : object, default=None
            Ignored.

        Yields
        ------
        train, test : ndarray of int of shape (n_samples,)
            The indices of all samples, twice.

        Raises
        ------
        ValueError
            If both `X` and `y` are None, or there is no sample.
        """
        samples = y if X is None else X
        if samples is None:
            raise ValueError("ZeroShotSplit needs X or y to know how many samples.")
        n_samples = samples.shape[0] if hasattr(samples, "shape") else len(samples)
        if n_samples == 0:
            raise ValueError("There is no sample to split: X is empty.")
        yield np.arange(n_samples), np.arange(n_samples)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of splits, 1.

        Parameters
        ----------
        X : object, default=None
            Ignored.
        y : object, default=None
            Ignored.
        groups : object, default=None
            Ignored.

        Returns
        -------
        int
            Always 1.
        """
        return 1

    def __repr__(self) -> str:
        return "ZeroShotSplit()"
