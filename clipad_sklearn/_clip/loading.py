"""Loading a CLIP with open_clip: from a name, the hub, a folder or a file.

Imported only when a model is needed, because it imports torch and open_clip.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch

from .._errors import WeightsNotFound

logger = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"


def create(model_name: str, pretrained: str | None, cache_dir: str | None) -> Any:
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
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        text = config["model_cfg"]["text_cfg"]
        bpe_path = (text.get("tokenizer_kwargs") or {}).get("bpe_path")
        # open_clip would look for a relative path in the working directory.
        return {"bpe_path": str(folder / bpe_path)} if bpe_path else {}
    except FileNotFoundError:
        raise _not_found(str(folder), str(folder), f"no {CONFIG} there") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG} is not a valid open_clip config ({error!r}): it needs "
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
        f"{CONFIG} and open_clip_model.safetensors\n"
        '  3. to try things out without any download: clip="tiny"'
    )


def _chain(error: BaseException | None) -> list[str]:
    messages = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    return messages
