"""The torch side of `OpenCLIP`: a loaded model that encodes tokens and pixels.

Imported only when a model is needed, because it imports torch and open_clip.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import open_clip
import torch

from .blocks import directions
from .image_size import set_image_size, unfit_size
from .kept_model import may_fill_context
from .loading import create, shortened
from .models import LEAST_COSINE
from .source import CONFIG, Source
from .text_tower import group_by_prefix, text_tower

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Texts that tokenizers of different settings cut differently.
_PROBES = [
    "",
    "A Photo of the FLAWLESS bolt,  close-up!",
    "it's 3/4 &amp; 10% <b>off</b>; _under_score\n\tna\u00efve \u65e5\u672c e\u0301",
    "bolt " * 300,
]


def _check_device(device: str) -> str:
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device={device!r}: expected a string such as 'cpu'.")
    try:
        # Back again too: "meta" holds no numbers.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # To a device that it lacks, torch lists all that it has, in one line.
        reason = shortened(str(error).splitlines()[0])
        raise ValueError(f"device={device!r} cannot be used here: {reason}") from error
    return str(device)


class LoadedModel:
    """A CLIP with its tokenizer and preprocessing, on one device."""

    def __init__(self, source: Source, *, device: str, precision: str) -> None:
        self.source = source
        self.device = _check_device(device)
        self._fitting: dict[str, int] = {}  # rows at once, where memory was short
        self.model, self._make_tokenizer, self._has_plain_tokenizer = create(source)
        if self._has_plain_tokenizer:
            _ = self.tokenizer  # what is wrong with it is said now
        self.model.eval().requires_grad_(False).to(self.device)
        self.preprocess_cfg: dict[str, Any] = dict(self.model.visual.preprocess_cfg)
        self._text_tower = text_tower(self.model)
        self.dtype = self._choose_dtype(precision)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, made when the first text is encoded if that needs more."""
        tokenizer = self._make_tokenizer()
        self._check_vocabulary(tokenizer)
        return tokenizer

    def resize_input(self, size: tuple[int, int]) -> None:
        """Let the vision tower take pixels of another height and width."""
        _ = self.identity  # with its digest, of the weights as they were loaded
        set_image_size(self.model.visual, size)
        try:
            # Of zeros, towers without biases make zeros.
            probe = self.encode_pixels(torch.ones((1, 3, *size)))
        except Exception as error:
            raise unfit_size(self.model.visual, size, str(error)) from error
        if not np.isfinite(probe).all():
            raise unfit_size(self.model.visual, size, "embeddings are not finite")
        self.preprocess_cfg["size"] = size

    # -- what it is ------------------------------------------------------------

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the weights: the same for the same state, whatever its name.

        The same for every input size; the preprocessing differs then.
        """
        digest = self._state_digest.copy()
        # The state does not show the activation, the number of heads, the way of
        # pooling, masks, or how texts become tokens.
        digest.update(str(self.model).encode())
        for name, module in self.model.named_modules():
            for key, value in sorted(vars(module).items()):
                if not key.startswith("_") and _is_setting(value):
                    digest.update(f"{name} {key}={value!r}\n".encode())
            for key, buffer in module.named_buffers(recurse=False):
                array = buffer.detach().cpu().contiguous().numpy()
                digest.update(f"{name} {key} {array.shape}".encode() + array.tobytes())
        if self._has_plain_tokenizer:
            self._add_tokenizer(digest)
        return digest.hexdigest()

    @functools.cached_property
    def _state_digest(self) -> Any:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8))
        return digest

    def fingerprint(self, resize: str) -> str:
        """Hash of weights and preprocessing that outlives versions of torch."""
        digest = self._state_digest.copy()
        mean, std = (
            tuple(map(float, np.ravel(self.preprocess_cfg[k]))) for k in ("mean", "std")
        )
        how = f"{resize} {self.preprocess_cfg.get('interpolation', 'bicubic')}"
        digest.update(f"{self.input_size} {mean} {std} {how}{self._structure}".encode())
        return str(digest.hexdigest())

    @functools.cached_property
    def _structure(self) -> str:
        """What decides embeddings beside the weights, in names that hardly change."""
        found: set[str] = set()
        for module in self.model.modules():
            kind = type(module).__name__
            if kind.lower().endswith(("elu", "silu")):
                found.add(kind)
            for name in ("num_heads", "pool_type", "text_pool_type", "global_pool"):
                value = getattr(module, name, None)
                if isinstance(value, (int, str)):
                    found.add(f"{name}={value}")
        return " ".join(sorted(found))

    @functools.cached_property
    def text_identity(self) -> str:
        """Hash of the weights and of how texts become tokens."""
        if self._has_plain_tokenizer:
            return self.identity
        digest = hashlib.sha256(self.identity.encode())
        self._add_tokenizer(digest)
        return digest.hexdigest()

    def _add_tokenizer(self, digest: Any) -> None:
        digest.update(self.tokenize(_PROBES).numpy().tobytes())
        digest.update(repr(_vocabulary(self.tokenizer)).encode("utf-8", "replace"))

    @functools.cached_property
    def embedding_width(self) -> int:
        """Number of features of an embedding."""
        if self._has_plain_tokenizer:
            return int(self.encode_tokens(self.tokenize(["a"])).shape[1])
        return int(self.encode_pixels(torch.zeros((1, 3, *self.input_size))).shape[1])

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        size = self.preprocess_cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(height), int(width)

    def transform(self, resize: str) -> Any:
        """Return open_clip's own preprocessing, with the given way of resizing."""
        mode = {"squash": "squash", "crop": "shortest"}[resize]
        known = {k: self.preprocess_cfg[k] for k in ("size", "mean", "std")}
        config = open_clip.transform.PreprocessCfg(
            **known,
            interpolation=self.preprocess_cfg.get("interpolation", "bicubic"),
            resize_mode=mode,
        )
        return open_clip.transform.image_transform_v2(config, is_train=False)

    def resizing(self, resize: str) -> Callable[[Any], torch.Tensor]:
        """Return what makes the bytes (3, height, width) of the input of an image.

        `transform` without its arithmetic, which is done for many images at once, on
        the device. Bytes are a quarter of what a digest has to read, or a GPU to get.
        """
        *steps, _, _ = self.transform(resize).transforms

        def resized(image: Any) -> torch.Tensor:
            for step in steps:
                image = step(image)
            # Moved by torch, whose threads here keep those of the model from spinning
            # while they wait, which would cost reading 3 to 9 % on two cores.
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

        return resized

    def on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return images (n, 3, height, width) as the tower takes them.

        Of bytes, the result is that of `transform`; the rest is preprocessed already.
        """
        pixels = pixels.to(self.device)
        if pixels.dtype != torch.uint8:
            return pixels
        return self._normalize(pixels.to(torch.float32).div_(255))

    @functools.cached_property
    def _normalize(self) -> Any:
        normalize = self.transform("squash").transforms[-1]
        normalize.inplace = True
        return normalize

    # -- encoding --------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return token ids (n, context length)."""
        return self.tokenizer(list(prompts))

    @property
    def context_length(self) -> int:
        """Number of tokens of a text, its beginning and end included."""
        return int(self.tokenizer.context_length)

    def may_fill_context(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that are perhaps longer than the context."""
        return may_fill_context(texts, self.context_length)

    def longer_than_context(self, texts: Sequence[str]) -> list[str]:
        """Return the texts whose end is cut off."""
        tokenizer, most = self.tokenizer, self.context_length

        def n_tokens(text: str) -> int:
            if hasattr(tokenizer, "encode"):
                return len(tokenizer.encode(text)) + 2
            return len(tokenizer.tokenizer(tokenizer.clean_fn(text))["input_ids"])

        return [t for t in self.may_fill_context(texts) if n_tokens(t) > most]

    def text_batches(
        self, tokens: torch.Tensor, batch_size: int
    ) -> list[tuple[np.ndarray, int]]:
        """Return the rows of each batch, and with how many equal tokens they begin."""
        if self._text_tower is None:
            rows = np.arange(len(tokens))
            return [
                (rows[start : start + batch_size], 0)
                for start in range(0, len(rows), batch_size)
            ]
        return group_by_prefix(
            tokens.numpy(), 2 * batch_size, batch_size * tokens.shape[1]
        )

    def encode_tokens(self, tokens: torch.Tensor, n_shared: int = 0) -> np.ndarray:
        """Encode token ids that begin with `n_shared` equal tokens.

        Rows of the result are L2-normalised float32.
        """

        def encode(part: slice) -> np.ndarray:
            some = tokens[part].to(self.device)
            with self.inference():
                if self._text_tower is None:
                    features = self.model.encode_text(some)
                else:
                    features = self._text_tower.encode(some, n_shared)
            return _normalised(features)

        return self.within_memory("texts", len(tokens), encode)

    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """Encode what `on_device` takes, as `encode_tokens`."""

        def encode(part: slice) -> np.ndarray:
            with self.inference():
                features = self.model.encode_image(self.on_device(pixels[part]))
            return _normalised(features)

        return self.within_memory("images", len(pixels), encode)

    def within_memory(
        self, what: str, count: int, work: Callable[[slice], np.ndarray]
    ) -> np.ndarray:
        """Do `work` on `count` rows: on fewer at once if the GPU's memory is short.

        How many of them (`what` is the kind) fit is remembered.
        """
        results: list[np.ndarray] = []
        start = 0
        while start < count:
            size = min(self._fitting.get(what, count), count - start)
            try:
                results.append(work(slice(start, start + size)))
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                torch.cuda.empty_cache()
                self._fitting[what] = size // 2
                logger.warning(
                    "The memory of %s is too small for %d %s at once; going on with "
                    "%d. A batch_size of at most that many saves the attempt.",
                    self.device, size, what, size // 2,
                )  # fmt: skip
                continue
            start += size
        return results[0] if len(results) == 1 else np.concatenate(results)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and autocast where the precision is not float32."""
        with contextlib.ExitStack() as contexts:
            contexts.enter_context(torch.inference_mode())
            if self.dtype != torch.float32:
                contexts.enter_context(self._autocast(self.dtype))
            yield

    def _autocast(self, dtype: torch.dtype) -> Any:
        return torch.autocast(self.device.split(":")[0], dtype=dtype)

    # -- checks ----------------------------------------------------------------

    def _check_vocabulary(self, tokenizer: Any) -> None:
        rows = getattr(self.model, "vocab_size", None)
        known = getattr(tokenizer, "vocab_size", None)
        if known is None and hasattr(tokenizer, "tokenizer"):
            known = len(tokenizer.tokenizer)
        if rows is None or known is None:
            return
        simple = isinstance(tokenizer, open_clip.SimpleTokenizer)
        if known > rows or (simple and known != rows):
            raise ValueError(
                f"The tokenizer of {str(self.source)!r} knows {known} tokens, but "
                f"the model has embeddings of {rows}: they do not belong together. For "
                f"a folder, put the merges file beside {CONFIG} and name it there as "
                "text_cfg.tokenizer_kwargs.bpe_path."
            )

    def _choose_dtype(self, precision: str) -> torch.dtype:
        if precision == "fp32":
            return torch.float32
        if precision != "auto":
            dtype = _DTYPES[precision]
            try:
                with self._autocast(dtype):
                    pass
            except RuntimeError as error:  # not with every torch on every device
                raise ValueError(
                    f"precision={precision!r} cannot be used on {self.device!r} with "
                    f"torch {torch.__version__}: {error}"
                ) from error
            return dtype
        self.dtype = torch.float32
        if not self.device.startswith("cuda"):
            return torch.float32
        # Half precision only where it does not show: a fixed rule on fixed input.
        noise = torch.Generator().manual_seed(0)
        pixels = torch.randn((2, 3, *self.input_size), generator=noise)
        exact = self.encode_pixels(pixels)
        self.dtype = torch.float16
        cosine = (exact * self.encode_pixels(pixels)).sum(axis=1).min()
        return torch.float16 if cosine >= LEAST_COSINE else torch.float32


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_setting(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _vocabulary(tokenizer: Any) -> list[tuple[str, int]]:
    """What a tokenizer knows, of open_clip's own or of a hub's."""
    if hasattr(tokenizer, "encoder"):
        return sorted(tokenizer.encoder.items())
    inner: Any = getattr(tokenizer, "tokenizer", None)
    return sorted(inner.get_vocab().items()) if hasattr(inner, "get_vocab") else []


def _normalised(features: torch.Tensor) -> np.ndarray:
    return directions(features).cpu().numpy()
