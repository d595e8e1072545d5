"""Training of SDP+'s layers: a function of patch tokens, masks and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._clip.encoding import pixel_batches
from .._clip.settings import OpenCLIP
from .._progress import progress_bar
from .maps import interpolation

if TYPE_CHECKING:
    import torch

# Tokens of the training images are kept for the next epochs up to this size.
LARGEST_KEPT_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Training:
    """The parameters of :class:`SDPPlusDetector` that are about training."""

    temperature: float
    focal_weight: float
    focal_gamma: float
    dice_weight: float
    learning_rate: float
    n_epochs: int
    shuffle: bool


class PatchTokens:
    """Original patch tokens of the training images, batch by batch."""

    def __init__(
        self,
        clip: OpenCLIP,
        tower: Any,
        ends: Sequence[int],
        alias_compat: bool,
        images: Sequence[Any],
        mask_sizes: Sequence[tuple[int, int] | None],
    ) -> None:
        self.clip, self.tower, self.images = clip, tower, images
        self.ends, self.alias_compat = ends, alias_compat
        self.mask_sizes = mask_sizes
        n_patches = tower.grid[0] * tower.grid[1]
        shape = (len(images), len(ends), n_patches, tower.width)
        self.kept: np.ndarray | None = None
        if 4 * np.prod(shape, dtype=np.int64) <= LARGEST_KEPT_BYTES:
            kept = np.empty(shape, dtype=np.float32)
            for batch, tokens in self._computed(np.arange(len(images))):
                kept[batch] = tokens
            self.kept = kept

    def batches(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield which images are in a batch, and their tokens."""
        if self.kept is None:
            yield from self._computed(order)
            return
        for start in range(0, len(order), self.clip.batch_size):
            batch = order[start : start + self.clip.batch_size]
            yield batch, self.kept[batch]

    def _computed(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        images = [self.images[i] for i in order]
        for pixels, sizes in pixel_batches(self.clip, images, order):
            batch = order[start : start + len(sizes)]
            start += len(sizes)
            for index, size in zip(batch, sizes, strict=True):
                of_mask = self.mask_sizes[index]
                if of_mask not in (None, size):
                    raise ValueError(
                        f"Mask {index} has the size {of_mask}, but its image has "
                        f"{size}."
                    )

            def tokens(part: slice, pixels: torch.Tensor = pixels) -> np.ndarray:
                some = pixels[part]
                return self.tower.original_tokens(some, self.ends, self.alias_compat)

            yield batch, self.tower.model.within_memory("images", len(sizes), tokens)


def train_layers(
    layers: tuple[np.ndarray, np.ndarray],
    tokens: PatchTokens,
    masks: Any,
    directions: np.ndarray,
    training: Training,
    random_state: np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Train one linear layer for each stage; return weights, intercepts and losses.

    `layers` are the initial weights (n_stages, n_features, width) and intercepts,
    ``masks.load`` returns the masks of a batch, and `directions` (1 or n_images,
    n_features) lead from the normal to the anomalous prompts.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        device = tokens.tower.model.device
        parameters = [
            torch.tensor(values, device=device, requires_grad=True) for values in layers
        ]
        optimizer = torch.optim.Adam(parameters, lr=training.learning_rate)
        rows, columns = (
            torch.tensor(interpolation(n, size, True), dtype=torch.float32).to(device)
            for n, size in zip(tokens.tower.grid, tokens.tower.input_size, strict=True)
        )

        def step(batch: np.ndarray, values: np.ndarray) -> float:
            # (n, stages, patches, width) with one matrix per stage
            x = torch.from_numpy(values).to(device)
            projected = torch.einsum("ngpw,gdw->ngpd", x, parameters[0])
            projected = projected + parameters[1][:, None]
            features = torch.nn.functional.normalize(projected, dim=-1)
            chosen = directions[batch if len(directions) > 1 else [0]]
            direction = torch.from_numpy(chosen).to(device)[:, None, :, None]
            logits = (features @ direction).squeeze(3) / training.temperature
            logits = rows @ logits.unflatten(2, tokens.tower.grid) @ columns.mT
            mask = torch.from_numpy(masks.load(batch)).to(device)
            loss = training_loss(torch.sigmoid(logits), mask[:, None], training)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        n_images = len(tokens.images)
        losses = []
        n_steps = training.n_epochs * -(-n_images // tokens.clip.batch_size)
        with progress_bar(n_steps, "Training") as progress:
            for _ in range(training.n_epochs):
                order = np.arange(n_images)
                if training.shuffle:
                    random_state.shuffle(order)
                total = 0.0
                for batch, values in tokens.batches(order):
                    total += step(batch, values) * len(batch)
                    progress.update()
                losses.append(total / n_images)
        coefs, intercepts = (p.detach().cpu().numpy() for p in parameters)
    return coefs, intercepts, losses


def training_loss(
    anomalous: torch.Tensor, mask: torch.Tensor, training: Training
) -> torch.Tensor:
    """Focal and dice loss of (n, stages, height, width), summed over stages."""
    import torch

    # The published label smoothing and added constant, which keep the log finite.
    smooth = mask.clamp(1e-5, 1 - 1e-5)
    likely = smooth * anomalous + (1 - smooth) * (1 - anomalous) + 1e-5
    focal = -((1 - likely).clamp(min=0) ** training.focal_gamma) * torch.log(likely)
    overlap = (anomalous * mask).sum(dim=(2, 3))
    areas = anomalous.sum(dim=(2, 3)) + mask.sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (areas + 1)
    return (
        training.focal_weight * focal.mean(dim=(0, 2, 3)).sum()
        + training.dice_weight * dice.mean(dim=0).sum()
    )
