"""Slow references for anomaly maps: plain loops, written from the published methods.

They share no code with the library. Attention, normalisation and blocks are spelled
out from the weights; of the model only its parameters and its activation are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage


def layer_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    if not hasattr(module, "weight"):
        return x
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + module.eps) * module.weight + module.bias


def attention(
    module: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Softmax attention of one sequence (length, width), head by head."""
    width = queries.shape[1] // module.num_heads
    heads = []
    for head in range(module.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(width)
        weights = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
        heads.append(weights / weights.sum(dim=1, keepdim=True) @ values[:, part])
    return torch.cat(heads, dim=1) @ module.out_proj.weight.T + module.out_proj.bias


def queries_keys_values(block: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    x = layer_norm(block.ln_1, x)
    return (x @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=1)


def mlp(block: Any, x: torch.Tensor) -> torch.Tensor:
    first, second = block.mlp.c_fc, block.mlp.c_proj
    hidden = block.mlp.gelu(layer_norm(block.ln_2, x) @ first.weight.T + first.bias)
    return hidden @ second.weight.T + second.bias


def embed(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Tokens of one image before `ln_pre`, the class token first."""
    size = visual.conv1.kernel_size[0]
    rows, columns = visual.grid_size
    kernel = visual.conv1.weight.reshape(visual.conv1.out_channels, -1)
    tokens = [visual.class_embedding]
    for row in range(rows):
        for column in range(columns):
            patch = pixels[
                :,
                row * size : (row + 1) * size,
                column * size : (column + 1) * size,
            ]
            tokens.append(kernel @ patch.reshape(-1))
    return torch.stack(tokens) + visual.positional_embedding


def encode(visual: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Unit embedding of a sequence of tokens before `ln_pre`."""
    x = layer_norm(visual.ln_pre, tokens)
    for block in visual.transformer.resblocks:
        x = x + attention(block.attn, *queries_keys_values(block, x))
        x = x + mlp(block, x)
    embedding = layer_norm(visual.ln_post, x[0]) @ visual.proj
    return embedding / embedding.norm()


def windows(grid: tuple[int, int], size: int) -> list[list[int]]:
    """Patch numbers of each window."""
    rows, columns = grid
    return [
        [
            (row + i) * columns + column + j
            for i in range(size)
            for j in range(size)
        ]
        for row in range(rows - size + 1)
        for column in range(columns - size + 1)
    ]  # fmt: skip


@torch.no_grad()
def encode_window(visual: Any, tokens: torch.Tensor, patches: list[int]) -> np.ndarray:
    """Unit embedding of some patches of `tokens`, which `embed` returned."""
    kept = [0, *(patch + 1 for patch in patches)]
    return encode(visual, tokens[kept]).numpy()


def fuse(
    grid: tuple[int, int],
    sizes: Sequence[int],
    scores: Sequence[Sequence[float]],
    image_score: float | None,
) -> np.ndarray:
    """Harmonic means over windows, then over scales, patch by patch."""
    fused = np.zeros(grid[0] * grid[1])
    for patch in range(len(fused)):
        scales = [] if image_score is None else [image_score]
        for size, of_windows in zip(sizes, scores, strict=True):
            covering = [
                score
                for score, patches in zip(of_windows, windows(grid, size), strict=True)
                if patch in patches
            ]
            scales.append(len(covering) / sum(1 / score for score in covering))
        fused[patch] = len(scales) / sum(1 / score for score in scales)
    return fused.reshape(grid)


def enlarge(grid_map: np.ndarray, size: int, align_corners: bool = False) -> np.ndarray:
    return (
        torch.nn.functional.interpolate(
            torch.from_numpy(np.asarray(grid_map, dtype=np.float64))[None, None],
            size=(size, size),
            mode="bilinear",
            align_corners=align_corners,
        )[0, 0]
        .numpy()
        .copy()
    )


@torch.no_grad()
def winclip_map(
    visual: Any,
    pixels: torch.Tensor,
    sizes: Sequence[int],
    prototypes: np.ndarray,
    temperature: float,
) -> np.ndarray:
    """The map of one image at the size of `pixels`; prototypes: anomalous, normal."""

    def score(embedding: np.ndarray) -> float:
        logits = prototypes @ embedding / temperature
        weights = np.exp(logits - logits.max())
        return max(float(weights[0] / weights.sum()), 1e-6)

    grid = tuple(visual.grid_size)
    tokens = embed(visual, pixels)
    everything = list(range(grid[0] * grid[1]))
    of_windows = [
        [score(encode_window(visual, tokens, w)) for w in windows(grid, size)]
        for size in sizes
    ]
    image_score = score(encode_window(visual, tokens, everything))
    return enlarge(fuse(grid, sizes, of_windows, image_score), pixels.shape[-1])


@torch.no_grad()
def dual_path(
    visual: Any, pixels: torch.Tensor, ends: Sequence[int], alias_compat: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Surgery tokens and original tokens of one image at the end of each stage."""
    x = layer_norm(visual.ln_pre, embed(visual, pixels))
    blocks = list(visual.transformer.resblocks)
    surgery = torch.zeros_like(x)
    stages = []
    for number, block in enumerate(blocks, start=1):
        queries, keys, values = queries_keys_values(block, x)
        surgery = surgery + attention(block.attn, values, values, values)
        x = x + attention(block.attn, queries, keys, values)
        x = x + mlp(block, x)
        if number in ends:
            original = x
            if alias_compat and number < len(blocks):
                following = blocks[number]
                original = x + attention(
                    following.attn, *queries_keys_values(following, x)
                )
            stages.append((surgery, original))
            surgery = torch.zeros_like(x)
    return stages


@torch.no_grad()
def sdp_stage_maps(
    visual: Any,
    stages: Sequence[tuple[torch.Tensor, torch.Tensor]],
    prototypes: np.ndarray,
) -> list[np.ndarray]:
    """Feature surgery of each stage on the grid, by broadcasting over classes.

    `stages` is what `dual_path` returned.
    """
    maps = []
    texts = torch.from_numpy(prototypes.astype(np.float32))
    for surgery, original in stages:
        tokens = torch.cat([original[:1], surgery[1:]])
        features = layer_norm(visual.ln_post, tokens) @ visual.proj
        features = features / features.norm(dim=1, keepdim=True)
        probabilities = torch.softmax(features[:1] @ texts.T, dim=1)
        weights = probabilities / probabilities.mean()
        products = features[:, None] * texts[None] * weights[..., None]
        products = products - products.mean(dim=1, keepdim=True)
        anomalous = products.sum(dim=2)[1:, 0]
        maps.append(anomalous.reshape(visual.grid_size).numpy())
    return maps


def sdp_map(stage_maps: Sequence[np.ndarray], size: int, sigma: float) -> np.ndarray:
    """The published map: sum over stages, enlarged, smoothed."""
    return ndimage.gaussian_filter(enlarge(sum(stage_maps), size), sigma)


@torch.no_grad()
def sdp_plus_map(
    visual: Any,
    pixels: torch.Tensor,
    ends: Sequence[int],
    alias_compat: bool,
    prototypes: np.ndarray,
    coefs: np.ndarray,
    intercepts: np.ndarray,
    sigma: float,
) -> np.ndarray:
    """The published map of SDP+: trained layers plus the map of SDP."""
    size = pixels.shape[-1]
    stages = dual_path(visual, pixels, ends, alias_compat)
    total = enlarge(sum(sdp_stage_maps(visual, stages, prototypes)), size)
    for (_, original), coef, intercept in zip(stages, coefs, intercepts, strict=True):
        features = original[1:].numpy() @ coef.T + intercept
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
        logits = 100 * features @ prototypes.T
        anomalous, normal = (
            enlarge(logits[:, k].reshape(visual.grid_size), size, align_corners=True)
            for k in (0, 1)
        )
        total = total + 1 / (1 + np.exp(normal - anomalous))
    return ndimage.gaussian_filter(total, sigma)
