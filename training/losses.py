"""Augmentation of a batch, its captions, and the losses of one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional

from clipad_sklearn.datasets._drawn.drawing import COLORS

from . import captions
from .model import Axis, encode_image_tokens, encode_texts, normalise_pixels
from .pool import COUNTS
from .settings import IMAGE_SIZE, TRAINED_DEFECTS, TRAINED_FAMILIES, Settings
from .vocabulary import Tokenizer

# A patch shows the defect if more than this share of it does.
SHOWN = 0.06
MISSING = TRAINED_DEFECTS.index("missing part")


@dataclass(frozen=True)
class Views:
    """Pairs of images as a step sees them, and what can still be known of them."""

    images: Tensor  # (n, 2, 3, size, size), 0..1
    masks: Tensor  # (n, size, size), 0..1
    whole: np.ndarray  # (n,) bool: nothing of importance was cut off
    colored: np.ndarray  # (n,) bool


def augment(rows: np.ndarray, seed: int, device: torch.device | str = "cpu") -> Views:
    """The same crop, turn, light and camera for both images of a pair.

    The random numbers are drawn on the CPU, so that every device draws the same.
    """
    g = torch.Generator().manual_seed(seed)
    n, size = len(rows), IMAGE_SIZE
    good, bad = torch.from_numpy(rows["good"]), torch.from_numpy(rows["bad"])
    mask = torch.from_numpy(np.unpackbits(rows["mask"], axis=-1))[..., None]
    layers = torch.cat([good, bad, mask * 255], dim=-1).permute(0, 3, 1, 2)
    layers = layers.to(device)
    whole = torch.rand(n, generator=g) < 0.5
    place = torch.rand(n, generator=g)
    scale = torch.where(whole, 0.95 + 0.08 * place, 0.7 + 0.25 * place)
    angle = torch.randint(0, 4, (n,), generator=g) * (np.pi / 2)
    angle = angle + 0.08 * torch.randn(n, generator=g)
    flip = torch.where(torch.rand(n, generator=g) < 0.5, 1.0, -1.0)
    shift = (2 * torch.rand(n, 2, generator=g) - 1) * (1 - scale)[:, None].clamp(min=0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack(
        [
            torch.stack([cos * flip, -sin, shift[:, 0]], dim=-1),
            torch.stack([sin * flip, cos, shift[:, 1]], dim=-1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(
        theta.to(device), [n, 7, size, size], align_corners=False
    )
    layers = functional.grid_sample(
        layers.float() / 255, grid, padding_mode="reflection", align_corners=False
    )
    images, masks = layers[:, :6], layers[:, 6]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=g)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=g)

    soft = (uniform() < 0.1).to(device)
    coarse = functional.avg_pool2d(images[soft], 2)
    images[soft] = functional.interpolate(coarse, size=size, mode="bilinear")
    images = images.view(n, 2, 3, size, size)
    gray = uniform() < 0.1
    images[gray.to(device)] = images[gray.to(device)].mean(dim=2, keepdim=True)

    # Light that falls unevenly, white balance, contrast and gamma.
    patchy = 0.2 * uniform(1, 1, 1) * (uniform(1, 1, 1) < 0.3) * normal(1, 3, 3)
    light = (
        0.75
        + 0.5 * uniform(1, 1, 1)
        + functional.interpolate(patchy, size=size, mode="bicubic")
    )
    cast = 0.04 * normal(1, 3, 1, 1)
    contrast = (0.2 * normal(1, 1, 1, 1)).exp()
    gamma = (0.2 * normal(1, 1, 1, 1)).exp()
    images = (images - 0.5) * contrast.to(device) + 0.5 + cast.to(device)
    images = images * light[:, None].to(device)
    images = images.clamp(0, 1) ** gamma.to(device)
    level = 0.04 * uniform(1, 1, 1, 1) * (uniform(1, 1, 1, 1) < 0.2)
    noise = level * normal(1, 1, size, size)
    images = (images + noise.to(device)).clamp(0, 1)
    return Views(images, masks, whole.numpy(), ~gray.numpy())


def facts_in_sight(rows: np.ndarray, views: Views, all_tokens: bool) -> np.ndarray:
    """Forget the counts and colours that a step cannot see."""
    rows = rows.copy()
    rows["count"][~views.whole | (not all_tokens)] = -1
    rows["color"][~views.colored] = -1
    return rows


def choose_tokens(
    coverage: Tensor,
    rng: np.random.Generator,
    shared: np.random.Generator,
    settings: Settings,
) -> Tensor | None:
    """Which patches of each pair the step looks at: None is all of them.

    How many they are comes from `shared`, the same in all processes, so that none
    waits for another one that has more to do.
    """
    n, patches = coverage.shape
    side = round(patches**0.5)
    kind = shared.random()
    if kind < settings.full_share:
        return None
    shown = coverage.cpu().numpy() > SHOWN
    if kind < settings.full_share + settings.window_share:
        k = int(shared.choice(settings.windows))
        top, left = rng.integers(0, side - k + 1, (2, n))
        for i in np.flatnonzero(shown.any(axis=1) & (rng.random(n) < 0.85)):
            row, column = divmod(int(rng.choice(np.flatnonzero(shown[i]))), side)
            top[i] = np.clip(row - rng.integers(k), 0, side - k)
            left[i] = np.clip(column - rng.integers(k), 0, side - k)
        rows = top[:, None] + np.arange(k)
        columns = left[:, None] + np.arange(k)
        index = rows[:, :, None] * side + columns[:, None, :]
        return torch.from_numpy(index.reshape(n, k * k))
    favoured = shown * (rng.random((n, 1)) < 0.7) * 0.35
    order = np.argsort(-(rng.random((n, patches)) + favoured), axis=1)
    return torch.from_numpy(order[:, : int(patches * settings.kept_tokens)].copy())


@dataclass(frozen=True)
class Names:
    """Captions of what the images show, and which images they fit."""

    texts: list[str]
    fits: Tensor  # (images, texts) bool
    known: Tensor  # (images, texts) bool: whether `fits` is certain
    with_defect: Tensor  # (texts,) bool

    def to(self, device: torch.device) -> Names:
        moved = (t.to(device) for t in (self.fits, self.known, self.with_defect))
        return Names(self.texts, *moved)


def name_images(
    rows: np.ndarray,
    label: np.ndarray,
    sure: np.ndarray,
    rng: np.random.Generator,
    count: int,
    state_share: float = 0.0,
    twins: bool = False,
) -> Names:
    """Captions for random images of the batch (good ones first, then bad ones).

    `state_share` of them say normal or anomalous, and nothing else that is true.
    With `twins` captions that count parts come with others that count differently.
    """
    n = len(rows)
    family = np.tile(rows["family"], 2)
    color = np.tile(rows["color"], 2)
    parts = np.tile(rows["count"], 2)
    parts[n:][rows["defect"] == MISSING] = -1
    defect = np.concatenate([np.full(n, -1), rows["defect"]])
    texts: list[str] = []
    asked = np.full((5, 0), -1)

    def add(column: np.ndarray) -> None:
        nonlocal asked
        asked = np.column_stack([asked, column])
        what, tone, number, trouble, _ = column
        texts.append(
            captions.name_caption(
                rng,
                TRAINED_FAMILIES[what] if what >= 0 else None,
                color=COLORS[tone] if tone >= 0 else "",
                count=int(number) if number > 0 else None,
                defect=TRAINED_DEFECTS[trouble] if trouble >= 0 else "",
            )
        )

    for _ in range(count):
        i = int(rng.integers(2 * n))
        column = np.full(5, -1)
        if state_share and rng.random() < state_share:
            column[4] = label[i]
            asked = np.column_stack([asked, column])
            texts.append(captions.state_pair(rng)[int(label[i])])
            continue
        if rng.random() < 0.88:
            column[0] = family[i]
        if color[i] >= 0 and rng.random() < 0.5:
            column[1] = color[i]
        if column[0] >= 0 and parts[i] > 0 and rng.random() < 0.5 + 0.4 * twins:
            column[2] = parts[i]
        if label[i] > 0 and sure[i] and rng.random() < 0.4:
            column[3] = defect[i]
        if (column[[0, 1, 3]] < 0).all():
            column[0] = family[i]
        add(column)
        if twins and column[2] > 0:
            for number in rng.choice(COUNTS, 2, replace=False):
                if number != column[2]:
                    twin = column.copy()
                    twin[2] = number
                    add(twin)
    count = len(texts)
    fits = np.ones((2 * n, count), bool)
    known = np.ones((2 * n, count), bool)
    shows = np.where((label > 0) & sure, defect, -1)
    shown = (family, color, parts, shows, label)
    for asked_row, has in zip(asked, shown, strict=True):
        free = asked_row[None] < 0
        fits &= free | (has[:, None] == asked_row[None])
        if has is color or has is parts:
            known &= free | (has[:, None] >= 0)
    known &= (asked[3:] < 0).all(axis=0)[None] | sure[:, None]
    # An unknown colour does not matter where the family is wrong anyway.
    known |= (asked[0][None] >= 0) & (family[:, None] != asked[0][None])
    return Names(
        texts, torch.from_numpy(fits & known), torch.from_numpy(known),
        torch.from_numpy(asked[3] >= 0),
    )  # fmt: skip


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _bce(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        logits, target.expand_as(logits), reduction="none"
    )


def _contrastive(logits: Tensor, names: Names) -> Tensor:
    """Both directions; every caption that fits an image is a right answer."""
    logits = logits.masked_fill(~names.known, -1e4)
    right = logits.masked_fill(~names.fits, -1e4)
    total = logits.new_zeros(())
    for dim in (1, 0):
        some = names.fits.any(dim=dim)
        if some.any():
            gap = logits.logsumexp(dim=dim) - right.logsumexp(dim=dim)
            total = total + 0.5 * gap[some].mean()
    return total


@dataclass(frozen=True)
class Targets:
    """What images (the good ones first, then the bad ones) and patches should say."""

    label: Tensor  # (2 n,): 1 where the image shows a defect
    sure: Tensor  # (2 n,): 0 where too little of the defect is seen to be certain
    patch: Tensor  # (2 n, patches): 1 where the patch shows a defect
    patch_weight: Tensor  # (2 n, patches)


def targets_of(seen: Tensor) -> Targets:
    """Targets from the share of each patch that the defect covers in the bad image."""
    most = seen.max(dim=1).values
    clear = ((most > SHOWN) | (most <= 0)).float()
    cover = torch.cat([torch.zeros_like(seen), seen])
    bad_patch = (cover > SHOWN).float()
    return Targets(
        label=torch.cat([torch.zeros_like(most), (most > SHOWN).float()]),
        sure=torch.cat([torch.ones_like(most), clear]),
        patch=bad_patch,
        patch_weight=((cover > SHOWN) | (cover <= 0)).float() * (1 + 3 * bad_patch),
    )


def axis_losses(
    axis: Axis,
    image: Tensor,
    patch: Tensor,
    text: Tensor,
    targets: Targets,
    names: Names,
    settings: Settings,
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Images, patches and texts, each against the one direction of the axis.

    Also the share of pairs with a visible defect that are ranked correctly, or None
    if there is no such pair.
    """
    n, half = len(image) // 2, settings.state_pairs
    along = text @ axis.direction
    on_image = (
        axis.image[0].clamp(1, settings.largest_scale) * (image @ axis.direction)
        + axis.image[1]
    )
    visible = targets.label[n:] > 0
    apart = on_image[n:] - on_image[:n]
    ranked = (apart[visible] > 0).float().mean() if visible.any() else None
    ranking = (
        functional.softplus(-apart[visible]).mean()
        if visible.any()
        else 0 * apart.sum()
    )
    on_patch = axis.patch[0].clamp(1, 40) * (patch @ axis.direction) + axis.patch[1]
    state_label = (torch.arange(2 * half, device=image.device) >= half).float()
    text_axis = _bce(10 * along[: 2 * half], state_label).mean()
    troubled = names.with_defect.float()
    text_axis = text_axis + 0.5 * _mean(
        _bce(10 * along[2 * half :], torch.ones_like(troubled)), troubled
    )
    losses = {
        "axis": _mean(_bce(on_image, targets.label), targets.sure),
        "ranking": ranking,
        "patch_axis": _mean(_bce(on_patch, targets.patch), targets.patch_weight),
        "text_axis": text_axis,
        "neutral": _mean((10 * along[2 * half :]) ** 2, 1 - troubled),
    }
    return losses, ranked


def prompt_losses(
    axis: Axis,
    image: Tensor,
    patch: Tensor,
    state_text: Tensor,
    targets: Targets,
    settings: Settings,
) -> dict[str, Tensor]:
    """The same, against the prompts as users write them."""
    half = settings.state_pairs
    difference = state_text[half:] - state_text[:half]
    scale, shift = axis.state
    against = (
        scale.clamp(1, settings.largest_scale / 2) * (image @ difference.T) + shift
    )
    scale, shift = axis.patch_state
    local = scale.clamp(1, 30) * (patch @ difference.mean(dim=0)) + shift
    on_image = _bce(against, targets.label[:, None]).mean(dim=1)
    return {
        "state": _mean(on_image, targets.sure),
        "patch_state": _mean(_bce(local, targets.patch), targets.patch_weight),
    }


def step_losses(
    model: CLIP,
    axis: Axis,
    tokenizer: Tokenizer,
    rows: np.ndarray,
    settings: Settings,
    rng: np.random.Generator,
    shared: np.random.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one step, and its parts for the log."""
    device = axis.direction.device
    views = augment(rows, int(rng.integers(2**31)), device)
    shown = (views.masks > 0.5).float()[:, None]
    coverage = functional.avg_pool2d(shown, settings.patch_size)
    coverage = coverage[:, 0].flatten(1)
    kept = choose_tokens(coverage, rng, shared, settings)
    if kept is not None:
        kept = kept.to(device)
    targets = targets_of(coverage if kept is None else torch.gather(coverage, 1, kept))
    images = normalise_pixels(torch.cat([views.images[:, 0], views.images[:, 1]]))

    pairs = [captions.state_pair(rng) for _ in range(settings.state_pairs)]
    normal, anomalous = zip(*pairs, strict=True)
    names = name_images(
        facts_in_sight(rows, views, kept is None),
        targets.label.cpu().numpy(),
        targets.sure.cpu().numpy() > 0,
        rng,
        settings.name_captions,
        settings.state_captions,
        settings.twins,
    ).to(device)
    tokens = torch.from_numpy(tokenizer([*normal, *anomalous, *names.texts]))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        image, patch = encode_image_tokens(
            model, images, None if kept is None else torch.cat([kept, kept])
        )
        text = encode_texts(model, tokens.to(device))
    state_text, name_text = text.split(
        [2 * settings.state_pairs, len(names.texts)], dim=0
    )

    losses, ranked = axis_losses(axis, image, patch, text, targets, names, settings)
    losses |= prompt_losses(axis, image, patch, state_text, targets, settings)
    # What the image shows; a small window does not show it.
    losses["names"] = image.new_zeros(())
    if kept is None or kept.shape[1] >= 25:
        logits = axis.names.clamp(max=4.0).exp() * (image @ name_text.T)
        losses["names"] = _contrastive(logits, names)

    loss = image.new_zeros(())
    for name, value in losses.items():
        loss = loss + getattr(settings, name) * value
    logged = {"image": "axis", "patch": "patch_axis", "text": "text_axis"}
    parts = {"loss": loss} | {key: losses[name] for key, name in logged.items()}
    parts["state"] = losses["state"]
    if kept is None:
        parts["names"] = losses["names"]
        if ranked is not None:
            parts["ranked"] = ranked
    return loss, {name: value.item() for name, value in parts.items()}
