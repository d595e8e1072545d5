"""`OpenCLIP`: which CLIP, and how it encodes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from .. import _fork  # noqa: F401  (processes forked later)
from .._errors import ImageReadError, WeightsNotFound
from .._images import check_images, image_name, open_image, read_bytes
from .._progress import progress_bar
from .embedding_cache import EmbeddingCache, open_cache

if TYPE_CHECKING:
    from .loaded_model import LoadedModel

__all__ = ["OpenCLIP", "WeightsNotFound", "check_clip", "clear_models"]

TINY = str(Path(__file__).parents[1] / "tiny")

_models: dict[tuple[Any, ...], LoadedModel] = {}
_models_lock = threading.Lock()


def _after_fork() -> None:
    # Another thread of the parent may have held it.
    global _models_lock
    _models_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class OpenCLIP(BaseEstimator):
    """Which CLIP to use and how: settings, from which images and texts are encoded.

    The object holds settings only. The weights are loaded at the first call that
    needs them and shared by the whole process, so clones, pickles and parameter
    searches cost nothing. Wherever this library has a parameter ``clip``, it takes
    such an object, or a short string for the common cases.

    Parameters
    ----------
    model_name : str, default="ViT-B-16-plus-240"
        A model of open_clip; ``"hf-hub:organisation/name"``; a folder that holds
        ``open_clip_config.json`` and ``open_clip_model.safetensors``; or ``"tiny"``,
        the small model that ships with this library (a folder of that name is
        ``"./tiny"``). ``"tiny"`` is for trying things out, for tests and for
        documentation. It is no substitute for a real CLIP.
    pretrained : str or None, default="laion400m_e32"
        Which weights, for a model of open_clip: a tag, a checkpoint file, or the word
        ``"random"`` (seeded random weights, for tests). For the hub and folders
        anything but ``"random"`` is ignored, for ``"tiny"`` everything. A bare
        checkpoint file records neither the mean and standard deviation of its
        preprocessing nor its activation function: the model name is trusted for both.
    device : str, default="auto"
        A torch device. ``"auto"`` is CUDA where there is one, else the CPU.
    precision : {"auto", "fp32", "bf16", "fp16"}, default="auto"
        ``"auto"`` is float32 on CPU, and float16 on CUDA where its embeddings of a
        fixed input have a cosine of at least 0.9999 to those of float32.
    batch_size : int, default=32
        Number of images that go through the model at once; of prompts, as many as have
        no more tokens than so many full contexts. Where a GPU has too little memory,
        half as many are tried, and so on.
    resize : {"squash", "crop"}, default="squash"
        ``"squash"`` resizes both sides to the model's input size, whatever the aspect
        ratio: nothing is cut off, which is how the field evaluates. ``"crop"`` resizes
        the shorter side and cuts the centre: open_clip's own preprocessing.
    num_workers : int or None, default=None
        Number of threads that read and resize images while the model works. None is
        one per CPU core, at most 8.
    cache_dir : str or None, default=None
        Folder for downloaded weights. None is the default of the hub's client.
    embedding_cache : {"memory"}, str, PathLike or None, default="memory"
        Where embeddings are kept, keyed by the bytes of the image or prompt, the
        weights and the preprocessing. ``"memory"``: in this process, at most 512 MB,
        least recently used first out. Anything else is a folder, kept on disk and
        shared by processes. None: nowhere.

    See Also
    --------
    CLIPImageEncoder : The transformer from images to embeddings.
    clear_models : Free the weights held by this process.

    Notes
    -----
    Preprocessing (mean, standard deviation, size, interpolation) comes from, in this
    order: the folder's or hub's config, the tag, the built-in config of the model.

    In causal text towers no token sees what follows it. So prompts run without their
    padding, sorted by length, and tokens with which many of them begin run once: exact,
    and several times faster than each prompt padded to the full context.

    Threads may share encoders and detectors. So may processes, however they are
    started; one that is forked from a process that has used torch computes with one
    thread. CUDA does not survive a fork: there, start processes with ``"spawn"``.

    Examples
    --------
    >>> from clipad_sklearn import OpenCLIP
    >>> clip = OpenCLIP("tiny")
    >>> clip.encode_text(["a photo of a scratched bolt"]).shape
    (1, 128)
    """

    def __init__(
        self,
        model_name: str = "ViT-B-16-plus-240",
        pretrained: str | None = "laion400m_e32",
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 32,
        resize: str = "squash",
        num_workers: int | None = None,
        cache_dir: str | None = None,
        embedding_cache: str | os.PathLike[str] | None = "memory",
    ) -> None:
        self.model_name = model_name
        self.pretrained = pretrained
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.resize = resize
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.embedding_cache = embedding_cache

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Encode texts.

        Parameters
        ----------
        texts : sequence of str
            The prompts. Duplicates are encoded once.

        Returns
        -------
        ndarray of shape (n_texts, n_features), dtype float32
            L2-normalised rows.

        Raises
        ------
        TypeError
            If `texts` is a lone string or holds anything but strings.
        ValueError
            If `texts` is empty, or a setting is out of range.
        WeightsNotFound
            If the weights cannot be had.
        """
        texts = _check_texts(texts)
        self._check_settings()
        model = self._model()
        cache = open_cache(self.embedding_cache)
        known: dict[str, np.ndarray] = {}
        keys: dict[str, str] = {}
        unique = list(dict.fromkeys(texts))
        if cache is not None:
            keys = {text: _text_key(text, model) for text in unique}
            hits = cache.get_many(list(keys.values()))
            known = {text: hits[key] for text, key in keys.items() if key in hits}
        missing = [text for text in unique if text not in known]
        for batch, embeddings in self._encode_texts(missing, model):
            known.update(zip(batch, embeddings, strict=True))
            if cache is not None:
                cache.put_many({keys[text]: known[text] for text in batch})
        return np.stack([known[text] for text in texts])

    def _encode_texts(
        self, texts: list[str], model: LoadedModel
    ) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield batches of texts of similar length with their embeddings."""
        if not texts:
            return
        tokens = model.tokenize(texts)
        with progress_bar(len(texts), "Encoding texts") as progress:
            for rows, n_shared in model.text_batches(tokens, self.batch_size):
                embeddings = model.encode_tokens(tokens[rows], n_shared)
                yield [texts[i] for i in rows], embeddings
                progress.update(len(rows))

    def encode_image(self, images: Any, *, on_error: str = "raise") -> np.ndarray:
        """Encode images.

        Parameters
        ----------
        images : sequence of path, PIL.Image or array, or one array
            Arrays have shape (height, width) or (height, width, 1, 3 or 4) and dtype
            uint8, uint16, bool, or float in [0, 1]. Sizes may differ. One array has
            shape (n, height, width) or (n, height, width, channels).
        on_error : {"raise", "nan"}, default="raise"
            What to do about images that cannot be read: raise an error that names all
            of them, or return rows of NaN for them.

        Returns
        -------
        ndarray of shape (n_images, n_features), dtype float32
            L2-normalised rows.

        Raises
        ------
        ImageReadError
            If images cannot be read and ``on_error="raise"``.
        ValueError
            If `images` is empty or a lone image, or a setting is out of range.
        WeightsNotFound
            If the weights cannot be had.
        """
        embeddings, failures = self._encode_images(images, on_error)
        if failures and on_error == "raise":
            raise ImageReadError(failures)
        return embeddings

    def _encode_images(
        self, images: Any, on_error: str
    ) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
        """Return embeddings, with NaN rows for failures, and the failures."""
        if on_error not in ("raise", "nan"):
            raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'nan'.")
        images = check_images(images)
        self._check_settings()
        model = self._model()
        cache = open_cache(self.embedding_cache)
        reader = _ImageReader(model, self.resize, cache)

        rows = np.full((len(images), model.embedding_width), np.nan, np.float32)
        failures: list[tuple[int, str, str]] = []
        first: dict[str, int] = {}  # key -> the first image that has it
        copies: list[tuple[int, int]] = []
        batch: list[tuple[int, str | None, Any]] = []

        def encode_batch() -> None:
            import torch

            embeddings = model.encode_pixels(torch.stack([item[2] for item in batch]))
            rows[[item[0] for item in batch]] = embeddings
            if cache is not None:
                pairs = zip(batch, embeddings, strict=True)
                cache.put_many({item[1]: row for item, row in pairs if item[1]})
            batch.clear()

        with progress_bar(len(images), "Encoding images") as progress:
            for index, result in enumerate(self._read_all(images, reader)):
                progress.update()
                if isinstance(result, ValueError):
                    failures.append((index, image_name(images[index]), str(result)))
                    continue
                if failures and on_error == "raise":
                    continue  # only the names of further bad images matter now
                key, embedding, pixels = result
                if key is not None and first.setdefault(key, index) != index:
                    copies.append((index, first[key]))
                elif embedding is not None:
                    rows[index] = embedding
                else:
                    batch.append((index, key, pixels))
                if len(batch) == self.batch_size:
                    encode_batch()
            if batch:
                encode_batch()
        for index, source in copies:
            rows[index] = rows[source]
        return rows, failures

    def _pixel_batches(
        self, images: Sequence[Any], positions: Sequence[int] | np.ndarray | None = None
    ) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
        """Yield batches of preprocessed pixels, and (height, width) of each image.

        After an image that cannot be read, the rest is only read to name all of them,
        by their `positions`, where these are not simply counted.
        """
        import torch

        transform = self._model().transform(self.resize)

        def read(image: Any) -> tuple[Any, tuple[int, int]] | ValueError:
            try:
                image = open_image(image)
                return transform(image), (image.height, image.width)
            except ValueError as error:
                return error

        failures: list[tuple[int, str, str]] = []
        batch: list[tuple[Any, tuple[int, int]]] = []

        def stack() -> tuple[Any, list[tuple[int, int]]]:
            pixels, sizes = zip(*batch, strict=True)
            batch.clear()
            return torch.stack(pixels), list(sizes)

        with progress_bar(len(images), "Encoding images") as progress:
            for index, result in enumerate(self._read_all(images, read)):
                progress.update()
                if isinstance(result, ValueError):
                    if batch:
                        yield stack()
                    position = index if positions is None else int(positions[index])
                    failures.append((position, image_name(images[index]), str(result)))
                elif not failures:
                    batch.append(result)
                    if len(batch) == self.batch_size:
                        yield stack()
        failures.sort()
        if failures:
            raise ImageReadError(failures)
        if batch:
            yield stack()

    def _read_all(
        self, images: Sequence[Any], reader: Callable[[Any], Any]
    ) -> Iterator[Any]:
        """Yield what `reader` makes of each image, in order, reading ahead."""
        workers = self.num_workers or min(8, os.cpu_count() or 1)
        ahead = self.batch_size + workers
        with ThreadPoolExecutor(workers, thread_name_prefix="clipad") as pool:
            pending: list[Future[Any]] = []
            try:
                for image in images:
                    pending.append(pool.submit(reader, image))
                    if len(pending) > ahead:
                        yield pending.pop(0).result()
                while pending:
                    yield pending.pop(0).result()
            finally:
                for future in pending:
                    future.cancel()

    def _model(self) -> LoadedModel:
        """Return the loaded model, loading it if no one has yet."""
        from .loaded_model import LoadedModel, resolve_device

        key = self._key()
        with _models_lock:
            if key not in _models:
                model_name, pretrained = self._source()
                _models[key] = LoadedModel(
                    model_name,
                    pretrained,
                    device=resolve_device(self.device),
                    precision=self.precision,
                    cache_dir=self.cache_dir,
                )
            return _models[key]

    def _key(self) -> tuple[Any, ...]:
        """What models of this process are told apart by."""
        source = self._source()
        stamps = tuple(_stamp(path) for path in source)
        device, precision = self.device, self.precision
        if device == "auto":
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        if precision == "auto" and str(device) == "cpu":
            precision = "fp32"
        return *source, *stamps, str(device), precision, self.cache_dir

    def _source(self) -> tuple[str, str | None]:
        """Return where the model comes from; a folder wins over any name but tiny."""
        name = os.fspath(self.model_name)
        if name == "tiny":
            return TINY, None
        if os.path.isdir(name) or name.startswith("hf-hub:"):
            return name, "random" if self.pretrained == "random" else None
        pretrained = self.pretrained
        return name, None if pretrained is None else os.fspath(pretrained)

    def _n_features(self) -> int | None:
        """Number of features of an embedding, None while the model is not loaded."""
        # An empty table spares the import of torch.
        model = _models.get(self._key()) if _models else None
        return None if model is None else model.embedding_width

    def _check_settings(self) -> None:
        choices = {
            "precision": ("auto", "fp32", "bf16", "fp16"),
            "resize": ("squash", "crop"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected one of {allowed}."
                )
        for name in ("batch_size", "num_workers"):
            value = getattr(self, name)
            if value is None and name == "num_workers":
                continue
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}={value!r}: expected an integer >= 1.")


class _ImageReader:
    """Turn one image into (key, cached embedding, pixels), or the error it gives."""

    def __init__(
        self, model: LoadedModel, resize: str, cache: EmbeddingCache | None
    ) -> None:
        self.transform = model.transform(resize)
        self.cache = cache
        self.salt = b""
        if cache is not None:
            settings = f"image {model.identity} {model.dtype} {self.transform}"
            self.salt = settings.encode()

    def __call__(self, image: Any) -> tuple[str | None, Any, Any] | ValueError:
        try:
            if isinstance(image, (str, os.PathLike)):
                image = content = read_bytes(image)
            else:
                image = open_image(image)
                content = f"{image.size}".encode() + image.tobytes()
            key = None
            if self.cache is not None:
                key = hashlib.sha256(self.salt + b"\0" + content).hexdigest()
                hit = self.cache.get_many([key])
                if hit:
                    return key, hit[key], None
            if isinstance(image, bytes):
                image = open_image(image)
            return key, None, self.transform(image)
        except ValueError as error:
            return error


def check_clip(clip: OpenCLIP | str | os.PathLike[str] | None) -> OpenCLIP:
    """Return the `OpenCLIP` that a parameter ``clip`` stands for.

    An existing path wins over the reading as ``"model/pretrained"``.
    """
    if clip is None:
        return OpenCLIP()
    if isinstance(clip, OpenCLIP):
        return clip
    if not isinstance(clip, (str, os.PathLike)):
        raise TypeError(
            f"clip={clip!r}: expected an OpenCLIP, a string such as "
            "'ViT-B-16-plus-240/laion400m_e32', 'hf-hub:organisation/name', a path, "
            "'tiny', or None."
        )
    text = os.fspath(clip)
    if os.path.isdir(text) or text == "tiny" or text.startswith("hf-hub:"):
        return OpenCLIP(text, None)
    if os.path.isfile(text):
        return OpenCLIP(pretrained=text)
    model_name, slash, pretrained = text.partition("/")
    if not slash:
        raise ValueError(
            f"clip={text!r}: no such path, and not of the form 'model/pretrained', "
            "such as 'ViT-B-32/laion2b_s34b_b79k'. 'model/random' gives random weights."
        )
    return OpenCLIP(model_name, pretrained)


def clear_models() -> None:
    """Free the weights that this process holds.

    The next call that needs a model loads it again. Cached embeddings stay.

    Examples
    --------
    >>> from clipad_sklearn import clear_models
    >>> clear_models()
    """
    with _models_lock:
        _models.clear()


def _check_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("Expected a list of texts, got one string. Wrap it in a list.")
    texts = list(texts)
    if not texts:
        raise ValueError("Found 0 texts while a minimum of 1 is required.")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"Expected strings, got {type(text).__name__}: {text!r}.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{text!r} is not valid Unicode: it has a lone surrogate at position "
                f"{error.start}."
            ) from None
    return texts


def _text_key(text: str, model: LoadedModel) -> str:
    settings = f"text {model.identity} {model.dtype}\0{text}"
    return hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: str | None) -> tuple[Any, ...] | None:
    """What changes when the file or folder at `path` is written anew."""
    if path is None or not os.path.exists(path):
        return None
    if os.path.isdir(path):
        return tuple(
            (entry.name, entry.stat().st_mtime_ns, entry.stat().st_size)
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name)
        )
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size
