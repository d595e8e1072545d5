"""The torch side of `OpenCLIP`: a loaded model that encodes tokens and pixels.

Imported only when a model is needed, because it imports torch and open_clip.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch.nn import functional

from .._errors import WeightsNotFound
from .text_tower import group_by_prefix, text_tower

logger = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CONFIG = "open_clip_config.json"
# Texts that tokenizers of different settings cut differently.
_PROBES = [
    "",
    "A Photo of the FLAWLESS bolt,  close-up!",
    "it's 3/4 &amp; 10% <b>off</b>; _under_score\n\tna\u00efve \u65e5\u672c e\u0301",
    "bolt " * 300,
]


def resolve_device(device: str) -> str:
    """Return the torch device that `device` stands for."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device={device!r}: expected a string such as 'cpu'.")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Back again too: "meta" holds no numbers.
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used here: {reason}") from error
    return str(device)


class LoadedModel:
    """A CLIP with its tokenizer and preprocessing, on one device."""

    def __init__(
        self,
        model_name: str,
        pretrained: str | None,
        *,
        device: str,
        precision: str,
        cache_dir: str | None,
    ) -> None:
        self.device = device
        self._fitting: dict[str, int] = {}  # rows at once, where memory was short
        self.model, self.tokenizer = _create(model_name, pretrained, cache_dir)
        self.model.eval().requires_grad_(False).to(device)
        self.preprocess_cfg: dict[str, Any] = dict(self.model.visual.preprocess_cfg)
        self._text_tower = text_tower(self.model)
        self._check_vocabulary(model_name)
        self.dtype = self._choose_dtype(precision)

    # -- what it is ------------------------------------------------------------

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the weights: the same for the same state, whatever its name."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8))
        # The state does not tell the activation, the number of heads, the way of
        # pooling, masks, or how texts become tokens.
        digest.update(str(self.model).encode())
        for name, module in self.model.named_modules():
            for key, value in sorted(vars(module).items()):
                if not key.startswith("_") and _is_setting(value):
                    digest.update(f"{name} {key}={value!r}\n".encode())
            for key, buffer in module.named_buffers(recurse=False):
                array = buffer.detach().cpu().contiguous().numpy()
                digest.update(f"{name} {key} {array.shape}".encode() + array.tobytes())
        digest.update(self.tokenize(_PROBES).numpy().tobytes())
        digest.update(repr(_vocabulary(self.tokenizer)).encode("utf-8", "replace"))
        return digest.hexdigest()

    @functools.cached_property
    def embedding_width(self) -> int:
        """Number of features of an embedding."""
        return int(self.encode_tokens(self.tokenize(["a"])).shape[1])

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

    # -- encoding --------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return token ids (n, context length)."""
        return self.tokenizer(list(prompts))

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
            with self._inference():
                if self._text_tower is None:
                    features = self.model.encode_text(some)
                else:
                    features = self._text_tower.encode(some, n_shared)
            return _normalised(features)

        return self.within_memory("texts", len(tokens), encode)

    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """Encode preprocessed pixels (n, 3, height, width), as `encode_tokens`."""

        def encode(part: slice) -> np.ndarray:
            with self._inference():
                features = self.model.encode_image(pixels[part].to(self.device))
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
    def _inference(self) -> Iterator[None]:
        """No gradients, and autocast where the precision is not float32."""
        with contextlib.ExitStack() as contexts:
            contexts.enter_context(torch.inference_mode())
            if self.dtype != torch.float32:
                contexts.enter_context(self._autocast(self.dtype))
            yield

    def _autocast(self, dtype: torch.dtype) -> Any:
        return torch.autocast(self.device.split(":")[0], dtype=dtype)

    # -- checks ----------------------------------------------------------------

    def _check_vocabulary(self, model_name: str) -> None:
        rows = getattr(self.model, "vocab_size", None)
        known = getattr(self.tokenizer, "vocab_size", None)
        if known is None and hasattr(self.tokenizer, "tokenizer"):
            known = len(self.tokenizer.tokenizer)
        if rows is None or known is None:
            return
        simple = isinstance(self.tokenizer, open_clip.SimpleTokenizer)
        if known > rows or (simple and known != rows):
            raise ValueError(
                f"The tokenizer of {model_name!r} knows {known} tokens, but the model "
                f"has embeddings of {rows}: they do not belong together. For a "
                f"folder, put the merges file beside {_CONFIG} and name it there as "
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
        size = self.preprocess_cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        noise = torch.Generator().manual_seed(0)
        pixels = torch.randn((2, 3, height, width), generator=noise)
        exact = self.encode_pixels(pixels)
        self.dtype = torch.float16
        cosine = (exact * self.encode_pixels(pixels)).sum(axis=1).min()
        return torch.float16 if cosine >= 0.9999 else torch.float32


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
    return functional.normalize(features.float(), dim=-1).cpu().numpy()


# -- loading -------------------------------------------------------------------


def _create(model_name: str, pretrained: str | None, cache_dir: str | None) -> Any:
    """Return open_clip's model (on CPU, float32) and its tokenizer."""
    source = model_name
    tokenizer_arguments: dict[str, Any] = {}
    weights: str | None = pretrained
    if os.path.isdir(model_name):
        tokenizer_arguments = _check_folder(Path(model_name))
        source, weights = f"local-dir:{model_name}", None
    elif model_name.startswith("hf-hub:"):
        weights = None
    else:
        _check_name(model_name, pretrained)
    random = pretrained == "random"
    from_hub = model_name.startswith("hf-hub:") or not (
        random or os.path.isdir(model_name) or os.path.isfile(pretrained or "")
    )
    arguments: dict[str, Any] = {
        "pretrained": None if random else weights,
        "device": "cpu",
        "cache_dir": cache_dir,
    }
    try:
        with (
            _offline_if_unreachable() if from_hub else contextlib.nullcontext(),
            _no_root_errors(),
        ):
            if random:
                # Not the weights that the folder or hub may hold.
                arguments["load_weights"] = False
            else:
                arguments["require_pretrained"] = True
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = open_clip.create_model(source, **arguments)
            tokenizer = open_clip.get_tokenizer(
                source, cache_dir=cache_dir, **tokenizer_arguments
            )
    except Exception as error:
        raise _explain(error, model_name, pretrained, cache_dir) from error
    return model, tokenizer


@contextlib.contextmanager
def _no_root_errors() -> Iterator[None]:
    """Drop the errors that open_clip logs: it raises them too.

    It logs to the root logger, and would give that a handler where it has none.
    """
    root = logging.getLogger()
    handler = logging.NullHandler()

    def below_error(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    root.addHandler(handler)
    root.addFilter(below_error)
    try:
        yield
    finally:
        root.removeFilter(below_error)
        root.removeHandler(handler)


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Let the hub's client use only its cache where the hub cannot be reached.

    By itself the client tries each file for half a minute before it looks there.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    try:
        if not offline:
            request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=10).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        logger.info("The hub cannot be reached (%s); using its cache only.", error)
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _check_folder(folder: Path) -> dict[str, Any]:
    """Check a folder's config; return the arguments of its tokenizer."""
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        text = config["model_cfg"]["text_cfg"]
        bpe_path = (text.get("tokenizer_kwargs") or {}).get("bpe_path")
        # open_clip would look for a relative path in the working directory.
        return {"bpe_path": str(folder / bpe_path)} if bpe_path else {}
    except FileNotFoundError:
        raise _not_found(str(folder), str(folder), f"no {_CONFIG} there") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / _CONFIG} is not a valid open_clip config ({error!r}): it needs "
            "model_cfg with vision_cfg and text_cfg."
        ) from error


def _check_name(model_name: str, pretrained: str | None) -> None:
    name = model_name.replace("/", "-")
    # Asked for other names, open_clip may look for files or on the network.
    known = name in open_clip.list_models()
    config = open_clip.get_model_config(name) if known else None
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Unknown model {model_name!r}: neither a path nor a model of open_clip."
            f"{hint} open_clip.list_models() lists them all."
        )
    if pretrained is None:
        raise ValueError(
            f"Model {model_name!r} needs `pretrained`: a tag "
            f"({_tags(name)}), a checkpoint file, or the word 'random'."
        )
    if pretrained == "random" or os.path.isfile(pretrained):
        return
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        if os.sep in pretrained or Path(pretrained).suffix:
            raise _not_found(model_name, pretrained, "no such checkpoint file")
        raise ValueError(
            f"Unknown tag {pretrained!r} of model {model_name!r}; open_clip knows "
            f"{_tags(name)}."
        )
    wanted = bool(tag.get("quick_gelu", False))
    if wanted != bool(config.get("quick_gelu", False)):
        other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
        raise ValueError(
            f"QuickGELU mismatch: the weights {pretrained!r} were trained "
            f"{'with' if wanted else 'without'} QuickGELU, the model {model_name!r} is "
            f"built {'without' if wanted else 'with'} it, and the embeddings would be "
            f"wrong. Use the model {other!r}."
        )


def _tags(name: str) -> str:
    return ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "no tag"


def _explain(
    error: Exception, model_name: str, pretrained: str | None, cache_dir: str | None
) -> Exception:
    """Turn what open_clip, torch or safetensors raised into what the user can do."""
    local = os.path.isdir(model_name) or os.path.isfile(pretrained or "")
    place = pretrained if os.path.isfile(pretrained or "") else model_name
    reasons = " ".join(_chain(error))
    if local and "Required pretrained weights" not in reasons:
        if "size mismatch" in reasons or "Missing key" in reasons:
            return ValueError(
                f"The checkpoint {place!r} does not fit the model {model_name!r}: "
                f"{str(error).splitlines()[0]}"
            )
        return ValueError(
            f"The checkpoint {place!r} cannot be read as {model_name!r}: it is "
            "truncated, damaged, not a checkpoint, or one of another model, which "
            f"'MODEL/{place}' names ({str(error).splitlines()[0]})."
        )
    wanted = model_name if pretrained is None else f"{model_name}/{pretrained}"
    if local:
        return _not_found(wanted, str(place), str(error).splitlines()[0])
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = cache_dir or f"{HF_HUB_CACHE}, {os.path.expanduser('~/.cache/clip')}"
    reason = str(error).splitlines()[0]
    return _not_found(wanted, f"{folders}, the hub", reason, download=wanted)


def _not_found(
    wanted: str, looked: str, reason: str, download: str = "MODEL/TAG"
) -> WeightsNotFound:
    return WeightsNotFound(
        f"The weights of {wanted!r} were not found. Looked in: {looked} ({reason}).\n"
        "Remedies (`clip`, or --clip of the command):\n"
        "  1. where there is a network, download them: clipad models --download "
        f"{download}\n"
        "  2. pass a local path: MODEL/CHECKPOINT-FILE, or a folder with "
        f"{_CONFIG} and open_clip_model.safetensors\n"
        '  3. to try things out without any download: clip="tiny"'
    )


def _chain(error: BaseException | None) -> list[str]:
    messages = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    return messages
