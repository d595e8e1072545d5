"""Photos that others are compared with: which they are, and what is kept of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def photo_ids(pixels: torch.Tensor) -> list[str]:
    """Return what identifies each photo: a digest of its preprocessed pixels."""
    return [
        hashlib.blake2b(photo.tobytes(), digest_size=16).hexdigest()
        for photo in pixels.cpu().contiguous().numpy()
    ]


def center_and_spread(scores: np.ndarray) -> np.ndarray:
    """Return the median and the lower spread of scores of mostly normal photos.

    The lower side, so that defective ones among them do not widen it.
    """
    center, low = np.quantile(scores, [0.5, 0.16])
    return np.array([center, max(center - low, 0.01 * abs(center) + 1e-3)])
