"""One photograph: light, white balance, contrast, blur and noise."""

from __future__ import annotations

import numpy as np

from .drawing import Array, Canvas, Random

LUMA = np.array([0.3, 0.59, 0.11], np.float32)


class Camera:
    """The same photographic conditions for every image that it takes."""

    def __init__(self, canvas: Canvas, rng: Random) -> None:
        self.gray = bool(rng.random() < 0.2)
        self.inverted = bool(rng.random() < 0.04)
        self.cast = (1 + rng.normal(0, 0.06, 3)).astype(np.float32)
        self.contrast = np.float32(rng.uniform(0.55, 1.2))
        self.offset = np.float32(rng.uniform(-0.08, 0.12))
        self.gamma = np.float32(np.exp(rng.normal(0, 0.22)))
        self.gain = np.float32(rng.uniform(0.75, 1.2))
        angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.35)
        slope *= rng.random() < 0.6
        vignette = rng.uniform(0, 0.2) * (rng.random() < 0.3)
        along = canvas.x * np.float32(np.cos(angle)) + canvas.y * np.float32(
            np.sin(angle)
        )
        corner = canvas.x**2 + canvas.y**2
        self.light = 1 + np.float32(slope) * along - np.float32(vignette) * corner
        self.blur = rng.uniform(0.25, 1.1) if rng.random() < 0.4 else 0.0
        level = rng.uniform(0, 0.05) if rng.random() < 0.6 else 0.0
        size = canvas.size
        self.noise = np.zeros((1, 1, 1), np.float32)
        if level > 0.004:
            grain = rng.standard_normal((size, size, 1), dtype=np.float32)
            self.noise = grain * np.float32(level)
        self._canvas = canvas

    def expose(self, image: Array) -> Array:
        """The image before noise, 0..1."""
        image = np.clip(image, 0, 1, dtype=np.float32)
        if self.gray:
            image = np.repeat((image @ LUMA)[..., None], 3, axis=-1)
        else:
            image = image * self.cast
        if self.inverted:
            image = 1 - image
        image = np.clip((image - 0.5) * self.contrast + 0.5 + self.offset, 0, 1)
        image = image**self.gamma * (self.gain * self.light)[..., None]
        if self.blur:
            image = self._canvas.blur(image, self.blur)
        return np.clip(image, 0, 1)

    def develop(self, exposed: Array) -> Array:
        """Add the noise and round to uint8."""
        noisy = np.clip(exposed + self.noise, 0, 1)
        return (noisy * 255 + 0.5).astype(np.uint8)
