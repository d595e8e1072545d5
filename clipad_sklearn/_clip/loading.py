"""Loading a CLIP with open_clip: from a name, the hub, a folder or a file.

Imported only when a model is needed, because it imports torch and open_clip.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import logging
import os
import traceback
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch

from .._errors import WeightsNotFound
from .._files import check_not_special, error_words
from .source import CONFIG, Source

logger = logging.getLogger(__name__)

_TOWERS = ("vision_cfg", "text_cfg")
# Endings of what open_clip, safetensors and transformers read in a folder.
_READ = (".json", ".safetensors", ".bin", ".pt", ".pth", ".txt", ".gz", ".model")
_MOST_LAYERS = 1000  # a config asks for more only by mistake, or to keep us busy
_OF_ANOTHER_MODEL = ("size mismatch", "Missing key", "Unexpected key")


def create(source: Source) -> tuple[Any, Callable[[], Any], bool]:
    """Return open_clip's model (on CPU, float32) and what makes its tokenizer.

    The last of the three says whether that needs nothing but open_clip.
    """
    text_cfg = _text_config(source)
    arguments: dict[str, Any] = {"device": "cpu", "cache_dir": source.cache_dir}
    if source.is_random:
        # Not the weights that the folder or hub may hold, nor those of one tower.
        arguments |= {"load_weights": False, "pretrained_text": False}
    else:
        arguments["require_pretrained"] = True
        if not (source.is_hub or source.is_folder):
            arguments["pretrained"] = source.pretrained
    if source.checkpoint is not None:
        arguments |= _settings_beside(source, source.checkpoint)
    needs_hub = not source.is_local
    if text_cfg.get("hf_model_name"):
        text_cfg = arguments["text_cfg"] = _text_tower(source, text_cfg)
        needs_hub |= text_cfg["hf_model_name"] != source.model_name
    with _explained(source, needs_hub), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(_for_open_clip(source), **arguments)
    _check_finite(source, model)
    _check_preprocessing(source, model)
    is_plain = not text_cfg.get("hf_tokenizer_name") and (
        source.is_folder or source.is_hub or "siglip" not in source.model_name.lower()
    )

    def make_tokenizer() -> Any:
        return tokenizer(source, text_cfg, is_plain)

    return model, make_tokenizer, is_plain


def _for_open_clip(source: Source) -> str:
    return f"local-dir:{source.model_name}" if source.is_folder else source.model_name


# -- what is asked of open_clip, and in which surroundings ----------------------------


@contextlib.contextmanager
def _explained(
    source: Source, needs_hub: bool, of_tokenizer: bool = False
) -> Iterator[None]:
    """Surroundings of a call of open_clip; its errors become what a user can do."""
    reach = _offline_if_unreachable() if needs_hub else contextlib.nullcontext()
    try:
        with reach, _no_root_errors(), _only_weights(), _no_own_code():
            yield
    except ImportError:
        raise  # it names the package that is missing
    except Exception as error:
        raise _explain(error, source, of_tokenizer) from error


@contextlib.contextmanager
def _only_weights() -> Iterator[None]:
    """Let torch read nothing but weights from a checkpoint, whatever is in it.

    A pickled checkpoint can run any code. open_clip asks for weights only, but on a
    TypeError, which a crafted file can bring about, it loads again without asking.
    This setting of torch forbids it everywhere.
    """
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update({k: v for k, v in before.items() if v is not None})


@contextlib.contextmanager
def _no_own_code() -> Iterator[None]:
    """Let transformers run no code that comes with a model, whatever its files allow.

    They can say `trust_remote_code` themselves; if they do not, transformers asks at
    the terminal.
    """
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    dynamic = importlib.import_module("transformers.dynamic_module_utils")

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("trust_remote_code is not granted here")

    never = {"get_class_in_module": refuse, "TIME_OUT_REMOTE_CODE": 0}
    before = {name: getattr(dynamic, name) for name in never}
    vars(dynamic).update(never)
    try:
        yield
    finally:
        vars(dynamic).update(before)


def _is_of_own_code(error: Exception) -> bool:
    return "trust_remote_code" in " ".join(_chain(error))


def _has_own_code(source: Source) -> ValueError:
    return ValueError(
        f"{str(source)!r}: its tokenizer or its text tower is Python code that comes "
        "with the model, which is never run here. Take a model that transformers or "
        "open_clip can build by itself."
    )


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

    Otherwise the client tries each file for half a minute before it looks there.
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


# -- configurations --------------------------------------------------------------------


def _text_config(source: Source) -> dict[str, Any]:
    """Check what can be checked before loading; return the config of the texts."""
    if source.is_folder:
        folder = Path(source.model_name)
        for inside in folder.iterdir():
            if inside.suffix in _READ:
                check_not_special(inside)
        model_cfg = _folder_config(folder)["model_cfg"]
        name = str(model_cfg["vision_cfg"].get("timm_model_name"))
        if ":" in name:
            raise ValueError(
                f"{folder / CONFIG}: timm_model_name={name!r}: expected a model of "
                "timm. A folder's tower comes from no repository of the hub and from "
                "no other folder."
            )
        return model_cfg["text_cfg"]
    if source.is_hub:
        from huggingface_hub import hf_hub_download

        repository = source.model_name.removeprefix("hf-hub:")
        with _explained(source, needs_hub=True):
            path = hf_hub_download(repository, CONFIG, cache_dir=source.cache_dir)
        return _folder_config(Path(path).parent)["model_cfg"]["text_cfg"]
    _check_name(source)
    config = open_clip.get_model_config(source.built_in)
    return config["text_cfg"]


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = _read_config(path)
        if not all(isinstance(config["model_cfg"][key], dict) for key in _TOWERS):
            raise TypeError("towers are described by objects")
        text_cfg = config["model_cfg"]["text_cfg"]
        of_tokenizer = text_cfg.get("tokenizer_kwargs") or {}
        for name, value in (
            ("tokenizer_kwargs", of_tokenizer),
            ("preprocess_cfg", config.get("preprocess_cfg") or {}),
        ):
            if not isinstance(value, dict):
                raise TypeError(f"{name} is an object")
        for name, value in (
            ("bpe_path", of_tokenizer.get("bpe_path")),
            ("hf_model_name", text_cfg.get("hf_model_name")),
            ("hf_tokenizer_name", text_cfg.get("hf_tokenizer_name")),
        ):
            if not isinstance(value or "", str):
                raise TypeError(f"{name} is a string")
        return config
    except FileNotFoundError:
        raise _not_found(str(folder), str(folder), f"no {CONFIG} there") from None
    except (LookupError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is not a valid open_clip config ({type(error).__name__}: "
            f"{_start(error)}): it needs model_cfg with vision_cfg and text_cfg."
        ) from error


def _read_config(path: Path) -> Any:
    """Return the settings of a model in a file, unless they would keep us busy."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        deep = _too_many_layers(settings)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error_words(error)}.") from error
    except (RecursionError, ValueError) as error:
        kind = "open_clip config" if path.name == CONFIG else "config of transformers"
        reason = f"{type(error).__name__}: {_start(error)}"
        raise ValueError(
            _instead_of(path) or f"{path} is not a valid {kind} ({reason})."
        ) from error
    if deep:
        raise ValueError(f"{path}: {deep}: expected at most {_MOST_LAYERS} layers.")
    return settings


def _too_many_layers(settings: Any) -> str:
    """Return the setting by which a model would be built without an end, or nothing."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        counts = value if isinstance(value, list) else [value]
        if name.rstrip("s").endswith("layer") and any(
            isinstance(count, (int, float)) and count > _MOST_LAYERS for count in counts
        ):
            return f"{name}={value}"
        inner = _too_many_layers(value)
        if inner:
            return inner
    return ""


def _instead_of(path: str | Path) -> str:
    """Say what a download has left in the place of a file; nothing if it is one."""
    try:
        with open(path, "rb") as file:
            start = file.read(200).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    except OSError:
        return ""  # which is said where it is read
    if start.startswith(b"version https://git-lfs"):
        return (
            f"{str(path)!r} is a pointer of Git LFS, not the file itself, which "
            "'git lfs pull' in its folder fetches."
        )
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            f"{str(path)!r} is a web page, not the file itself: download it again, "
            "from the address of the file."
        )
    return ""


def _settings_beside(source: Source, checkpoint: str) -> dict[str, Any]:
    """Return the settings that the config beside a checkpoint file asks for."""
    _check_file(source, checkpoint)
    folder = Path(checkpoint).parent
    if not (folder / CONFIG).is_file():
        return {}
    config = _folder_config(folder)
    named = open_clip.get_model_config(source.built_in) or {}
    keys = (*_TOWERS, "embed_dim", "quick_gelu")
    different = [
        k for k in keys if (config["model_cfg"].get(k) or 0) != (named.get(k) or 0)
    ]
    if different:
        raise ValueError(
            f"{str(source)!r}: {folder / CONFIG} beside the checkpoint describes "
            f"another model than {source.model_name!r} ({', '.join(different)}). Pass "
            f"the folder, clip={str(folder)!r}, or move the checkpoint elsewhere if "
            "the config is not its own."
        )
    return {"force_preprocess_cfg": config.get("preprocess_cfg") or {}}


def _check_file(source: Source, checkpoint: str) -> None:
    if os.path.getsize(checkpoint) == 0:
        raise ValueError(f"{str(source)!r}: the checkpoint {checkpoint!r} is empty.")
    if zipfile.is_zipfile(checkpoint):
        with zipfile.ZipFile(checkpoint) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise _is_a_program(source, checkpoint)


def _is_a_program(source: Source, checkpoint: str) -> ValueError:
    return ValueError(
        f"{str(source)!r}: {checkpoint!r} is a TorchScript archive, a program, which "
        "is never run here. OpenAI's models are tags of open_clip too, such as "
        "'ViT-B-32-quickgelu/openai'. If you trust the file, keep only its weights:\n"
        "  import torch\n"
        "  from safetensors.torch import save_file\n"
        f"  weights = torch.jit.load({checkpoint!r}, map_location='cpu').state_dict()\n"
        "  for name in ('input_resolution', 'context_length', 'vocab_size'):\n"
        "      weights.pop(name, None)\n"
        "  save_file({k: v.float().contiguous() for k, v in weights.items()}, "
        "'weights.safetensors')\n"
        f"and pass '{source.model_name}/weights.safetensors'."
    )


def _check_name(source: Source) -> None:
    name, pretrained = source.built_in, source.pretrained
    # Asked for other names, open_clip may look for files or on the network.
    known = name in open_clip.list_models()
    config = open_clip.get_model_config(name) if known else None
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        if pretrained is not None and "/" not in pretrained:
            hint += f" If it is a repository of the hub, write 'hf-hub:{source}'."
        raise ValueError(
            f"Unknown model {source.model_name!r} in {str(source)!r}: neither a path "
            f"nor a model of open_clip.{hint} open_clip.list_models() lists them all."
        )
    if pretrained is None:
        here = f" The folder is './{source}'." if os.path.isdir(str(source)) else ""
        raise ValueError(
            f"Model {source.model_name!r} needs `pretrained`: a tag "
            f"({_tags(name)}), a checkpoint file, or the word 'random'.{here}"
        )
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if source.is_random or (not tag and source.checkpoint is not None):
        return
    if not tag:
        if os.sep in pretrained or Path(pretrained).suffix:
            raise _not_found(str(source), pretrained, "no such checkpoint file")
        raise ValueError(
            f"Unknown tag {pretrained!r} of model {source.model_name!r}; open_clip "
            f"knows {_tags(name)}."
        )
    wanted = bool(tag.get("quick_gelu", False))
    if wanted != bool(config.get("quick_gelu", False)):
        other = f"{name}-quickgelu" if wanted else name.removesuffix("-quickgelu")
        raise ValueError(
            f"QuickGELU mismatch: the weights {pretrained!r} were trained "
            f"{'with' if wanted else 'without'} QuickGELU, the model "
            f"{source.model_name!r} is built {'without' if wanted else 'with'} it, and "
            f"the embeddings would be wrong. Use the model {other!r}."
        )


def _tags(name: str) -> str:
    return ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "no tag"


def _check_finite(source: Source, model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f"The weights of {str(source)!r} are damaged: {name} holds values that "
                "are not finite."
            )


def _check_preprocessing(source: Source, model: Any) -> None:
    settings = model.visual.preprocess_cfg
    transform = open_clip.transform
    try:
        known = {k: settings[k] for k in ("size", "mean", "std")}
        interpolation = settings.get("interpolation", "bicubic")
        config = transform.PreprocessCfg(**known, interpolation=interpolation)
        made = transform.image_transform_v2(config, is_train=False)
        pixels = made.transforms[-1](torch.zeros((3, 1, 1)))  # mean and std
        if not torch.isfinite(pixels).all():
            raise ValueError("pixels are not finite")
        if (torch.as_tensor(known["std"]) <= 0).any():
            raise ValueError("std is not above 0")
    except Exception as error:
        reason = _line(error)
        raise ValueError(
            f"The preprocess_cfg of {str(source)!r} is not valid ({reason}): {settings}"
        ) from error


# -- texts: what needs the package transformers ---------------------------------------


def _text_tower(source: Source, text_cfg: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a text tower of transformers, from the folder if there."""
    _need_transformers(source, "text tower")
    text_cfg = {**text_cfg, "hf_model_pretrained": False}
    config = Path(source.model_name, "config.json")
    if source.is_folder and config.is_file():
        _read_config(config)
        return text_cfg | {"hf_model_name": source.model_name}
    _check_not_planted(source, text_cfg["hf_model_name"])
    return text_cfg


def tokenizer(source: Source, text_cfg: dict[str, Any], is_plain: bool) -> Any:
    arguments: dict[str, Any] = {}
    if not is_plain:
        _need_transformers(source, "tokenizer")
        if not source.is_folder:
            _check_not_planted(source, text_cfg.get("hf_tokenizer_name") or "")
    elif source.is_folder:
        bpe_path = (text_cfg.get("tokenizer_kwargs") or {}).get("bpe_path")
        if bpe_path:
            # open_clip would look for a relative path in the working directory.
            path = Path(source.model_name) / bpe_path
            if not path.is_file():
                raise WeightsNotFound(
                    f"{str(source)!r}: the merges of its tokenizer were not found: "
                    f"{CONFIG} names them as bpe_path={bpe_path!r}, but there is no "
                    f"file {str(path)!r}."
                )
            instead = _instead_of(path)
            if instead:
                raise ValueError(f"{str(source)!r} has no tokenizer: {instead}")
            arguments["bpe_path"] = str(path)
    if is_plain:
        with _explained(source, needs_hub=source.is_hub, of_tokenizer=True):
            return _open_clip_tokenizer(source, arguments)
    needs_hub = not source.is_folder
    try:
        reach = _offline_if_unreachable() if needs_hub else contextlib.nullcontext()
        with reach, _no_own_code():
            return _open_clip_tokenizer(source, arguments)
    except Exception as error:
        if _is_of_own_code(error):
            raise _has_own_code(source) from error
        reason = _line(error)
        if source.is_folder:
            files = Path(source.model_name).glob("*.json")
            reason = next(filter(None, map(_instead_of, sorted(files))), reason)
        raise WeightsNotFound(
            f"The tokenizer of {str(source)!r} cannot be loaded: {reason.rstrip('.')}. "
            "Images can be encoded without it, texts cannot. Where there is a network "
            "it is downloaded at first use; without one, pass a folder that holds the "
            "files of the tokenizer too (tokenizer.json, tokenizer_config.json)."
        ) from error


def _open_clip_tokenizer(source: Source, arguments: dict[str, Any]) -> Any:
    return open_clip.get_tokenizer(
        _for_open_clip(source), cache_dir=source.cache_dir, **arguments
    )


def _need_transformers(source: Source, what: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(
            f"The {what} of {str(source)!r} needs the package transformers: "
            "pip install 'clipad-sklearn[transformers]'"
        )


def _check_not_planted(source: Source, repository: str) -> None:
    # transformers reads a folder of that name in the working directory first.
    if repository and os.path.isdir(repository):
        raise ValueError(
            f"{str(source)!r} needs {repository!r} of the hub, but the working "
            "directory holds a folder of that name, which would be read instead. Start "
            "somewhere else, or rename the folder."
        )


# -- errors ----------------------------------------------------------------------------


def _explain(error: Exception, source: Source, of_tokenizer: bool) -> Exception:
    """Turn what open_clip, torch or safetensors raised into what the user can do."""
    place = source.checkpoint or source.model_name
    is_local = source.is_folder or source.checkpoint is not None
    reasons = " ".join(_chain(error))
    read = _checkpoint_in_hand(error)
    if _is_of_own_code(error):
        return _has_own_code(source)
    if isinstance(error, MemoryError) or "tried to allocate" in reasons:
        return ValueError(
            f"{str(source)!r} needs more memory than there is ({_line(error)})."
        )
    if is_local and "TorchScript" in reasons:
        return _is_a_program(source, read or place)
    if is_local and "Required pretrained weights" not in reasons:
        if any(reason in reasons for reason in _OF_ANOTHER_MODEL):
            model = CONFIG if source.is_folder else source.model_name
            return ValueError(
                f"The checkpoint {place!r} does not fit the model {model!r}: "
                f"{_start(error)}"
            )
        instead = _instead_of(read) if read else ""
        if instead:
            return ValueError(f"{str(source)!r} has no weights: {instead}")
        if source.is_folder:
            suspect = f"{CONFIG} describes no model that can be built here"
            if of_tokenizer:
                suspect = "tokenizer_kwargs, or the merges they name, make no tokenizer"
            elif read:
                name = os.path.basename(read)
                suspect = f"its weights, {name}, are truncated, damaged or no weights"
            return ValueError(
                f"The folder {place!r} cannot be read as a CLIP: {suspect} "
                f"({_line(error)})."
            )
        return ValueError(
            f"The checkpoint {place!r} cannot be read as {source.model_name!r}: it is "
            "truncated, damaged, not a checkpoint, or one of another model, which "
            f"'MODEL/{place}' names ({_line(error)})."
        )
    if is_local:
        return _not_found(str(source), place, _line(error))
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = source.cache_dir or (
        f"{HF_HUB_CACHE}, {os.path.expanduser('~/.cache/clip')}"
    )
    looked = f"{folders}, the hub"
    return _not_found(str(source), looked, _line(error), download=str(source))


def _not_found(
    wanted: str, looked: str, reason: str, download: str = "MODEL/TAG"
) -> WeightsNotFound:
    return WeightsNotFound(
        f"The weights of {wanted!r} were not found. Looked in: {looked} ({reason}).\n"
        "Remedies (`clip`, of a Pipeline's encoder and detector both, or --clip of the "
        "command):\n"
        "  1. where there is a network, download them: clipad models --download "
        f"{download}\n"
        "  2. pass a local path: MODEL/CHECKPOINT-FILE, or a folder with "
        f"{CONFIG} and open_clip_model.safetensors\n"
        '  3. to try things out without any download: clip="tiny", or --clip tiny'
    )


def _checkpoint_in_hand(error: Exception) -> str | None:
    """Return the checkpoint that open_clip was reading when the error came, if any."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is open_clip.load_checkpoint.__code__:
            return str(frame.f_locals["checkpoint_path"])
    return None


def _line(error: BaseException) -> str:
    """First line of a message, or the kind of an error that has none."""
    text = str(error)
    if "weights_only" in text:
        # torch advises to read it unsafely, which is never done here.
        return "it is no checkpoint, or holds more than weights"
    return shortened((text.splitlines() or [type(error).__name__])[0])


def _start(error: BaseException) -> str:
    """Return a message of several lines in one, cut off where it is long."""
    return shortened(" ".join(str(error).split()))


def shortened(text: str) -> str:
    """Return the beginning of a message that is long."""
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _chain(error: BaseException | None) -> list[str]:
    messages = []
    while error is not None:
        messages.append(str(error))
        error = error.__cause__ or error.__context__
    return messages
