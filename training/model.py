"""The model: open_clip's own CLIP, and a forward pass over some of the tokens."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torch.nn import functional

from .settings import CONTEXT_LENGTH, IMAGE_MEAN, IMAGE_SIZE, IMAGE_STD, Settings


def model_config(settings: Settings, vocabulary: int) -> dict[str, Any]:
    """What open_clip calls `model_cfg`."""
    return {
        "embed_dim": settings.embed_dim,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": settings.patch_size,
            "width": settings.vision_width,
            "layers": settings.vision_layers,
            "head_width": settings.head_width,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocabulary,
            "width": settings.text_width,
            "heads": settings.text_width // 32,
            "layers": settings.text_layers,
        },
    }


def build_model(config: dict[str, Any]) -> CLIP:
    return CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=CLIPTextCfg(**config["text_cfg"]),
    )


def normalise_pixels(images: Tensor) -> Tensor:
    """From 0..1 to what the model takes; shape (..., 3, height, width)."""
    mean = torch.tensor(IMAGE_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(IMAGE_STD, device=images.device)[:, None, None]
    return (images - mean) / std


def run_blocks(transformer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The blocks of a transformer, with attention as plain matrix products.

    On a CPU their gradients take half the time of the fused attention's.
    """
    n, length, width = hidden.shape
    for block in transformer.resblocks:
        attention = block.attn
        joint = functional.linear(
            block.ln_1(hidden), attention.in_proj_weight, attention.in_proj_bias
        )
        joint = joint.view(n, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = joint.unbind(0)
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if mask is not None:
            weights = weights + mask
        mixed = weights.softmax(dim=-1).to(value.dtype) @ value
        mixed = mixed.transpose(1, 2).reshape(n, length, width)
        hidden = hidden + attention.out_proj(mixed)
        hidden = hidden + block.mlp(block.ln_2(hidden))
    return hidden


def encode_image_tokens(
    model: CLIP, images: Tensor, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Image embedding and patch embeddings, normalised; `kept`: (n, k) patches."""
    visual = model.visual
    size = visual.conv1.kernel_size[0]
    n, channels, height, width = images.shape
    grid = (height // size, width // size)
    patches = images.reshape(n, channels, grid[0], size, grid[1], size)
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    position = visual.positional_embedding
    if kept is None:
        places = position[1:]
    else:
        index = kept[:, :, None].expand(-1, -1, patches.shape[2])
        patches = torch.gather(patches, 1, index)
        places = position[1:][kept]
    tokens = patches @ visual.conv1.weight.flatten(1).T + places
    first = (visual.class_embedding + position[0]).to(tokens.dtype).expand(n, 1, -1)
    hidden = visual.ln_pre(torch.cat([first, tokens], dim=1))
    hidden = run_blocks(visual.transformer, hidden, None)
    hidden = functional.normalize(
        (visual.ln_post(hidden) @ visual.proj).float(), dim=-1
    )
    return hidden[:, 0], hidden[:, 1:]


def encode_texts(model: CLIP, tokens: Tensor) -> Tensor:
    """Normalised embeddings of texts that may be cut after the longest one."""
    length = tokens.shape[1]
    hidden = model.token_embedding(tokens) + model.positional_embedding[:length]
    hidden = run_blocks(model.transformer, hidden, model.attn_mask[:length, :length])
    rows = torch.arange(len(hidden), device=hidden.device)
    last = model.ln_final(hidden)[rows, tokens.argmax(dim=-1)]
    return functional.normalize((last @ model.text_projection).float(), dim=-1)


def whiten_patches(model: CLIP, images: Tensor, generator: torch.Generator) -> None:
    """Start the first layer from whitened directions of image patches."""
    weight = model.visual.conv1.weight
    size, width = weight.shape[-1], weight.shape[0]
    patches = functional.unfold(images, size, stride=size).transpose(1, 2).flatten(0, 1)
    covariance = patches.T @ patches / len(patches)
    values, vectors = torch.linalg.eigh(covariance)
    whitening = (vectors / (values + 1e-3 * values.max()).sqrt()).T.flip(0)[:width]
    square = torch.randn(width, width, generator=generator)
    turned = torch.linalg.qr(square)[0] @ functional.pad(
        whitening, (0, 0, 0, width - len(whitening))
    )
    with torch.no_grad():
        weight.copy_(0.5 * turned.view_as(weight))


class Axis(nn.Module):
    """The fixed direction of states, and the scales of the losses."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        direction = functional.normalize(
            torch.randn(embed_dim, generator=generator), dim=0
        )
        self.register_buffer("direction", direction)
        self.image = nn.Parameter(torch.tensor([8.0, 0.0]))
        self.patch = nn.Parameter(torch.tensor([8.0, -1.0]))
        self.state = nn.Parameter(torch.tensor([5.0, 0.0]))
        self.patch_state = nn.Parameter(torch.tensor([5.0, -1.0]))
        self.names = nn.Parameter(torch.tensor(2.5))  # logarithm of a scale
