"""All settings of the training of the embedded model, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipad_sklearn.datasets import DEFECT_FAMILIES, OBJECT_FAMILIES, TEXTURE_FAMILIES

HERE = Path(__file__).parent
RUNS = HERE / "runs"
PACKAGE = HERE.parent / "clipad_sklearn" / "tiny"

# Never seen in training: neither drawn nor named in a caption.
HELD_OUT_TEXTURES = ("marble", "carpet", "hexagon tiles", "ripples")
HELD_OUT_OBJECTS = ("capsule", "gear", "cookie", "zipper", "button", "lemon")
HELD_OUT_DEFECTS = ("thread", "dent", "bend", "smear")

HELD_OUT_FAMILIES = HELD_OUT_TEXTURES + HELD_OUT_OBJECTS
TRAINED_TEXTURES = tuple(f for f in TEXTURE_FAMILIES if f not in HELD_OUT_TEXTURES)
TRAINED_OBJECTS = tuple(f for f in OBJECT_FAMILIES if f not in HELD_OUT_OBJECTS)
TRAINED_FAMILIES = TRAINED_TEXTURES + TRAINED_OBJECTS
TRAINED_DEFECTS = tuple(d for d in DEFECT_FAMILIES if d not in HELD_OUT_DEFECTS)

IMAGE_MEAN = (0.45, 0.44, 0.42)
IMAGE_STD = (0.25, 0.25, 0.25)
IMAGE_SIZE = 112
CONTEXT_LENGTH = 64

# Seeds of the image sets; training samples use TRAIN_SEED and their own number.
TRAIN_SEED = 1
VALIDATION_SEED = 770_000
TEST_SEED = 880_000


@dataclass(frozen=True)
class Settings:
    """One training run."""

    # Model (open_clip's own CLIP)
    patch_size: int = 14
    vision_width: int = 192
    vision_layers: int = 6
    head_width: int = 64
    merges: int = 2000  # of the vocabulary
    text_width: int = 128
    text_layers: int = 3
    embed_dim: int = 128

    # Data: the pool of generated pairs is a ring of shards.
    pool_size: int = 128  # pixels
    pairs_per_shard: int = 256
    first_shards: int = 120  # ready before the training starts
    shards: int = 320
    severity: tuple[float, float] = (0.15, 1.0)
    object_share: float = 0.74

    # Optimisation
    processes: int = 2
    pairs_per_step: int = 48  # in each process
    images: int = 900_000
    learning_rate: float = 1.6e-3
    weight_decay: float = 0.05
    warmup: float = 0.01  # share of the run
    decay: float = 0.4  # share of the run, at its end
    ema: float = 0.998
    checkpoint_seconds: float = 120.0
    validation_seconds: float = 300.0
    seed: int = 0

    # Tokens of a step: the whole image, k x k windows, or a random part
    full_share: float = 0.5
    window_share: float = 0.2
    kept_tokens: float = 0.6
    windows: tuple[int, ...] = (2, 2, 3, 4, 5, 6)

    # Texts of a step, in each process
    state_pairs: int = 12
    name_captions: int = 40
    state_captions: float = 0.0  # share of the name captions that say a state
    twins: bool = True  # a caption that counts comes with wrong counts

    # Weights of the losses
    axis: float = 1.0
    patch_axis: float = 1.0
    text_axis: float = 0.5
    ranking: float = 0.5
    state: float = 0.3
    patch_state: float = 0.3
    names: float = 0.4
    neutral: float = 0.02
    # Of the logits along the axis. A small one makes images go far along the axis, so
    # that a classifier that knows texts only is not led astray by the rest.
    largest_scale: float = 4.0

    smoke: bool = False


SMOKE = Settings(
    vision_width=64,
    vision_layers=2,
    text_width=64,
    text_layers=1,
    merges=100,
    embed_dim=32,
    pairs_per_shard=16,
    first_shards=1,
    shards=2,
    processes=1,
    pairs_per_step=8,
    images=800,
    learning_rate=2e-3,
    checkpoint_seconds=0.0,
    validation_seconds=1e9,
    state_pairs=8,
    name_captions=16,
    smoke=True,
)
