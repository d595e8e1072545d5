"""Embeddings for the detectors that take them."""

from __future__ import annotations

import numpy as np
import pytest

from clipad_sklearn import OpenCLIP
from clipad_sklearn._clip.models import load


@pytest.fixture
def embeddings(rng: np.random.Generator) -> np.ndarray:
    """Sixty unit vectors as long as the embeddings of "tiny"."""
    width = load(OpenCLIP("tiny")).embedding_width
    X = rng.standard_normal((60, width)).astype(np.float32)
    return X / np.linalg.norm(X, axis=1, keepdims=True)
