"""Token by token through a vision transformer of open_clip.

The forward pass of the stock model is written out here with the model's own
submodules, because windows and the dual path need what happens between its blocks.
Nothing of the model is changed. Imported only from inside functions (torch).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch.nn import functional

from .blocks import add_mlp, attend, check_numbers, directions, heads, out, project
from .loaded_model import LoadedModel

# Prototypes are in the order anomalous, normal.
_SIGNS = torch.tensor([[1.0], [-1.0]])


class VisionTower:
    """The vision transformer of a loaded CLIP."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.visual = model.model.visual
        reason = _obstacle(self.visual)
        if reason:
            raise ValueError(
                f"Anomaly maps need the patch tokens of a vision transformer of "
                f"open_clip, but the vision tower of this CLIP {reason}. Models that "
                f"work: {', '.join(_working_models())}."
            )
        self.blocks = self.visual.transformer.resblocks
        self.stock_blocks = all(type(b) is ResidualAttentionBlock for b in self.blocks)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        rows, columns = self.visual.grid_size
        return int(rows), int(columns)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Number of features of a token."""
        return int(self.visual.conv1.out_channels)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        height, width = self.visual.image_size
        return int(height), int(width)

    # -- windows ---------------------------------------------------------------

    def encode_windows(
        self, pixels: torch.Tensor, windows: Sequence[np.ndarray], max_tokens: int
    ) -> np.ndarray:
        """Return the embedding of each window of each image.

        `windows` holds one array (n_windows, n_patches) of patch numbers per scale.
        All other patches are left out of the sequence. The result has shape
        (n_images, n_windows of all scales, n_features), rows are L2-normalised.
        About `max_tokens` tokens go through the blocks at once.
        """
        # Token 0 is the class token, which every window keeps.
        indices = [
            torch.from_numpy(np.pad(patches + 1, ((0, 0), (1, 0)))).to(
                self.model.device
            )
            for patches in windows
        ]
        per_image = sum(index.numel() for index in indices)
        n_images = max(1, max_tokens // per_image)
        with self.model.inference():
            outputs = []
            for some in pixels.split(n_images):
                tokens = self._embed(some)
                parts = _split_windows(indices, max_tokens // len(some))
                encoded = [self._encode_part(tokens, part) for part in parts]
                outputs.append(torch.cat(encoded, dim=1))
            features = directions(torch.cat(outputs))
            check_numbers(features)
        return features.cpu().numpy()

    def _encode_part(
        self, tokens: torch.Tensor, part: list[torch.Tensor]
    ) -> torch.Tensor:
        """Encode some windows of several scales: (n_images, n_windows, n_features)."""
        n_images = len(tokens)
        shapes = [(n_images * index.shape[0], index.shape[1]) for index in part]
        if self.stock_blocks:
            sequences = self._run_packed(tokens, part, shapes)
        else:
            sequences = []
            for index, (count, length) in zip(part, shapes, strict=True):
                x = tokens[:, index].reshape(count, length, -1)
                for block in self.blocks:
                    x = block(x)
                sequences.append(x)
        return torch.cat(
            [self.pool(x).unflatten(0, (n_images, -1)) for x in sequences], dim=1
        )

    def _run_packed(
        self,
        tokens: torch.Tensor,
        part: list[torch.Tensor],
        shapes: list[tuple[int, int]],
    ) -> list[torch.Tensor]:
        """Run windows of all scales as one matrix of tokens.

        Only attention needs to know where a window ends. What does not depend on
        the window, up to queries, keys and values of the first block, is computed
        once per image; what the embedding does not need, in the last block, never.
        """
        only_class = self.visual.attn_pool is None and self.visual.pool_type == "tok"

        def gather(of_image: torch.Tensor) -> torch.Tensor:
            width = of_image.shape[-1]
            return torch.cat([of_image[:, index].view(-1, width) for index in part])

        x = gather(tokens)
        projected = gather(project(self.blocks[0], tokens))
        for number, block in enumerate(self.blocks, 1):
            if number > 1:
                projected = project(block, x)
            last = only_class and number == len(self.blocks)
            attended = [
                self_attend(
                    block, rows.view(count, length, -1), class_only=last
                ).flatten(0, 1)
                for rows, (count, length) in zip(
                    projected.split([count * length for count, length in shapes]),
                    shapes,
                    strict=True,
                )
            ]
            if last:
                x = torch.cat([r[:, 0] for r in _sequences(x, shapes)])
                shapes = [(count, 1) for count, _ in shapes]
            x = add_mlp(block, x + out(block, torch.cat(attended)))
        return _sequences(x, shapes)

    # -- patches ---------------------------------------------------------------

    def patch_tokens(self, pixels: torch.Tensor) -> np.ndarray:
        """Return the patch tokens (n_images, n_patches, width) of the last block.

        They are normalised as the image's token is before its projection. After
        attention pooling that layer is of another width, and left out.
        """
        with self.model.inference():
            x = self._embed(pixels)
            for block in self.blocks:
                x = block(x)
            x = x[:, 1:]
            if self.visual.attn_pool is None:
                x = self.visual.ln_post(x)
            check_numbers(x)
            return x.float().cpu().numpy()

    # -- dual path -------------------------------------------------------------

    def check_dual_path(self) -> None:
        """Raise if patch tokens cannot be projected one by one."""
        if self.visual.attn_pool is not None:
            reason = "pools by attention, which projects no single patch token"
        elif not self.stock_blocks:
            reason = "has attention blocks with added normalisation or scaling"
        else:
            return
        names = ", ".join(_working_models(attention_pooling=False))
        raise ValueError(
            "The dual path needs patch tokens that can be projected one by one, but "
            f"the vision tower of this CLIP {reason}. Models that work: {names}."
        )

    def stages(
        self, pixels: torch.Tensor, ends: Sequence[int], alias_compat: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield surgery tokens and original tokens at the end of each stage.

        Both have shape (n_images, 1 + n_patches, width). `ends` holds the number of
        the last block of each stage, counted from 1. To be consumed within the
        model's inference context.
        """
        x = self._embed(pixels)
        surgery = None
        waiting: torch.Tensor | None = None
        for number, block in enumerate(self.blocks, 1):
            projected = project(block, x)
            attended = out(block, self_attend(block, projected))
            if waiting is not None:
                # The published code keeps a reference to the stream, to which the
                # next block adds its attention in place.
                yield waiting, x + attended
                waiting = None
            if number > ends[-1]:
                return
            values = projected.chunk(3, dim=-1)[2]
            path = out(block, self_attend(block, torch.cat([values] * 3, dim=-1)))
            surgery = path if surgery is None else surgery + path
            x = add_mlp(block, x + attended)
            if number in ends:
                if alias_compat and number < len(self.blocks):
                    waiting = surgery
                else:
                    yield surgery, x
                surgery = None

    def dual_path_scores(
        self,
        pixels: torch.Tensor,
        ends: Sequence[int],
        alias_compat: bool,
        prototypes: np.ndarray,
        coefs: Sequence[np.ndarray] = (),
        intercepts: Sequence[np.ndarray] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score patches against prototypes (n_images or 1, 2, n_features).

        Returns the feature surgery of each stage, and for each trained layer the
        cosine with the anomalous minus that with the normal prototype, both of shape
        (n_stages or n_layers, n_images, rows, columns).
        """
        texts = torch.from_numpy(prototypes.astype(np.float32)).to(self.model.device)
        surgeries: list[torch.Tensor] = []
        trained: list[torch.Tensor] = []
        with self.model.inference():
            for surgery, original in self.stages(pixels, ends, alias_compat):
                patches = self._project_patches(surgery)
                image = directions(self.pool(original))
                # Differences between cosines are too small for half precision.
                with torch.autocast(self.model.device.split(":")[0], enabled=False):
                    weights = (texts @ image.unsqueeze(2)).softmax(dim=1)
                    scores = (patches @ texts.mT) @ (weights * _SIGNS.to(weights))
                    surgeries.append(scores.squeeze(2))
                    if len(coefs):
                        layer = len(trained)
                        features = functional.linear(
                            original[:, 1:].float(),
                            torch.from_numpy(coefs[layer]).to(self.model.device),
                            torch.from_numpy(intercepts[layer]).to(self.model.device),
                        )
                        difference = texts[:, :1] - texts[:, 1:]
                        features = functional.normalize(features, dim=-1)
                        trained.append((features @ difference.mT).squeeze(2))
            check_numbers(*surgeries, *trained)
        return self._on_grid(surgeries), self._on_grid(trained)

    def original_tokens(
        self, pixels: torch.Tensor, ends: Sequence[int], alias_compat: bool
    ) -> np.ndarray:
        """Patch tokens (n_images, n_stages, n_patches, width) for trained layers."""
        with self.model.inference():
            stages = self.stages(pixels, ends, alias_compat)
            tokens = [original[:, 1:].float().cpu() for _, original in stages]
            check_numbers(*tokens)
        return torch.stack(tokens, dim=1).numpy()

    def _on_grid(self, scores: list[torch.Tensor]) -> np.ndarray:
        if not scores:
            return np.empty((0, 0, *self.grid), dtype=np.float32)
        return torch.stack(scores).unflatten(-1, self.grid).cpu().numpy()

    def _project_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Project every patch token like an image; rows are L2-normalised."""
        projected = self.visual.ln_post(tokens[:, 1:])
        if self.visual.proj is not None:
            projected = projected @ self.visual.proj
        return functional.normalize(projected.float(), dim=-1)

    # -- the model's own beginning and end ---------------------------------------

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        visual = self.visual
        patches = visual.conv1(self.model.on_device(pixels))
        patches = patches.flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([first, patches], dim=1)
        return visual.ln_pre(tokens + visual.positional_embedding.to(tokens.dtype))

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        visual = self.visual

        def pool(x: torch.Tensor) -> torch.Tensor:
            return x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)

        if visual.attn_pool is not None:
            pooled = pool(visual.ln_post(visual.attn_pool(tokens)))
        elif visual.final_ln_after_pool:
            pooled = visual.ln_post(pool(tokens))
        else:
            pooled = pool(visual.ln_post(tokens))
        return pooled if visual.proj is None else pooled @ visual.proj


def self_attend(
    block: Any, projected: torch.Tensor, class_only: bool = False
) -> torch.Tensor:
    """Attention from (n, length, 3 x width), before the output projection."""
    queries, keys, values = heads(block, projected)
    return attend(queries[:, :, :1] if class_only else queries, keys, values)


def _sequences(x: torch.Tensor, shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    parts = x.split([count * length for count, length in shapes])
    return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]


def _split_windows(
    indices: list[torch.Tensor], max_tokens: int
) -> Iterator[list[torch.Tensor]]:
    """Yield windows of one or several scales that together fit the budget."""
    part: list[torch.Tensor] = []
    room = max_tokens
    for index in indices:
        start = 0
        while start < len(index):
            fitting = room // index.shape[1]
            if fitting == 0 and part:
                yield part
                part, room = [], max_tokens
                continue
            some = index[start : start + max(1, fitting)]
            part.append(some)
            room -= some.numel()
            start += len(some)
    yield part


# -- which towers work -----------------------------------------------------------


def _obstacle(visual: Any) -> str:
    """Why windows cannot be encoded with this tower; empty if they can."""
    if not isinstance(visual, VisionTransformer):
        return f"is a {type(visual).__name__}"
    if getattr(visual, "attn_pool_contrastive", None) is not None:
        return "has two attention poolers"
    if visual.pool_type not in ("tok", "avg"):
        return f"has pool_type={visual.pool_type!r}"
    return ""


def _working_models(attention_pooling: bool = True) -> list[str]:
    names = []
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        stock = not vision.get("timm_model_name") and isinstance(
            vision.get("layers", 12), int
        )
        if stock and (attention_pooling or not vision.get("attentional_pool")):
            names.append(name)
    return names
