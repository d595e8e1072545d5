"""Images and texts through a CLIP: reading ahead, batches and the embedding cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from .._decoding import content_of, naming, noting_warnings
from .._errors import ImageReadError, shown
from .._files import read_bytes
from .._images import check_images, image_name, open_image
from .._progress import progress_bar
from .embedding_cache import EmbeddingCache, open_cache
from .kept_model import (
    ImageNames,
    TextNames,
    image_names,
    keep_names,
    known_names,
    may_fill_context,
    text_names,
)
from .models import load, why_not_a_number
from .read_once import ReadOnce, given

if TYPE_CHECKING:
    from .loaded_model import LoadedModel
    from .settings import OpenCLIP

_WARNED = "warned"  # whether an image was warned of when it was read
# Pixels of an image that is as large as the model wants it on one side.
_MOST_RESIZED = 100_000_000


def encode_texts(clip: OpenCLIP, texts: Sequence[str]) -> np.ndarray:
    """Return the embeddings (n_texts, n_features) of texts, duplicates encoded once."""
    texts = _check_texts(texts)
    cache = open_cache(clip.embedding_cache)
    unique = list(dict.fromkeys(texts))
    kept = _kept_texts(clip, unique, cache)
    if kept is not None:
        return np.stack([kept[text] for text in texts])
    model = load(clip)
    _warn_of_cut_texts(model, texts)
    known: dict[str, np.ndarray] = {}
    keys: dict[str, str] = {}
    if cache is not None:
        salt = keep_names(text_names(model, clip.resize), clip, cache).salt
        keys = {text: _text_key(text, salt) for text in unique}
        hits = cache.get_many(list(keys.values()))
        known = {text: hits[key] for text, key in keys.items() if key in hits}
    missing = [text for text in unique if text not in known]
    for batch, embeddings in _encoded_batches(model, missing, clip.batch_size):
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(bad):
            raise ValueError(
                f"The embedding of {shown(batch[bad[0]])} is not a number: "
                f"{why_not_a_number(clip)}."
            )
        known.update(zip(batch, embeddings, strict=True))
        if cache is not None:
            cache.put_many({keys[text]: known[text] for text in batch})
    return np.stack([known[text] for text in texts])


def check_pairs(
    clip: OpenCLIP, normal: Sequence[str], anomalous: Sequence[str]
) -> None:
    """Raise ValueError where prompts of both states are cut to the same tokens."""
    known = known_names(TextNames, clip, open_cache(clip.embedding_cache))
    if known is not None and not may_fill_context(normal, known.context_length):
        return
    model = load(clip)
    first, second = (model.may_fill_context(texts) for texts in (normal, anomalous))
    if not first or not second:
        return
    by_tokens = {
        row.tobytes(): text
        for row, text in zip(model.tokenize(first).numpy(), first, strict=True)
    }
    for row, text in zip(model.tokenize(second).numpy(), second, strict=True):
        other = by_tokens.get(row.tobytes(), text)
        if other != text:
            raise ValueError(
                f"The prompts {shown(other)} and {shown(text)} become equal, because "
                f"this CLIP reads the first {model.context_length} tokens of a prompt "
                "only. Shorten the names and states, or put the state first."
            )


def _warn_of_cut_texts(model: LoadedModel, texts: list[str]) -> None:
    cut = model.longer_than_context(list(dict.fromkeys(texts)))
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(set(texts))} prompts are longer than the context of "
            f"this CLIP, {model.context_length} tokens, and their ends are not read, "
            f"as of {shown(cut[0])}. Shorten names and states; for random words see "
            "max_tokens of random_word_prompts.",
            UserWarning,
            stacklevel=4,
        )


def _kept_texts(
    clip: OpenCLIP, texts: list[str], cache: EmbeddingCache | None
) -> dict[str, np.ndarray] | None:
    """Return the embeddings if all are kept, without loading the model."""
    model = known_names(TextNames, clip, cache)
    if model is None or cache is None or may_fill_context(texts, model.context_length):
        return None
    keys = [_text_key(text, model.salt) for text in texts]
    hits = cache.get_many(keys)
    if len(hits) < len(set(keys)):
        return None
    return {text: hits[key] for text, key in zip(texts, keys, strict=True)}


def _encoded_batches(
    model: LoadedModel, texts: list[str], batch_size: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield batches of texts of similar length with their embeddings."""
    if not texts:
        return
    tokens = model.tokenize(texts)
    with progress_bar(len(texts), "Encoding texts") as progress:
        for rows, n_shared in model.text_batches(tokens, batch_size):
            embeddings = model.encode_tokens(tokens[rows], n_shared)
            yield [texts[i] for i in rows], embeddings
            progress.update(len(rows))


def encode_images(
    clip: OpenCLIP, images: Any, on_error: str
) -> tuple[np.ndarray, list[tuple[int, str, str]]]:
    """Return embeddings, with NaN rows for failures, and the failures."""
    if on_error not in ("raise", "nan"):
        raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'nan'.")
    images = check_images(images)
    cache = open_cache(clip.embedding_cache)
    kept = _kept_images(clip, images, cache)
    if kept is not None:
        return kept, []
    model = load(clip)
    if cache is not None:
        keep_names(image_names(model, clip.resize), clip, cache)
    reader = _ImageReader(model, clip.resize, cache)

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
        for index, result in enumerate(_read_all(clip, images, reader)):
            progress.update()
            if isinstance(result, ValueError):
                name = image_name(given(images[index]))
                failures.append((index, name, str(result)))
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
            if len(batch) == clip.batch_size:
                encode_batch()
        if batch:
            encode_batch()
    for index, source in copies:
        rows[index] = rows[source]
    return rows, failures


def _kept_images(
    clip: OpenCLIP, images: Sequence[Any], cache: EmbeddingCache | None
) -> np.ndarray | None:
    """Return the embeddings if all images are files and kept, without the model."""
    model = known_names(ImageNames, clip, cache)
    if model is None or cache is None:
        return None
    rows = np.empty((len(images), model.embedding_width), np.float32)
    for index, image in enumerate(map(given, images)):
        if not isinstance(image, (str, os.PathLike)):
            return None
        try:
            key = _image_key(read_bytes(image), model.salt)
        except ValueError:
            return None  # said where it is read again
        hit = cache.get_many([key])
        if not hit:
            return None
        rows[index] = hit[key]
    return rows


def pixel_batches(
    clip: OpenCLIP,
    images: Sequence[Any],
    positions: Sequence[int] | np.ndarray | None = None,
) -> Iterator[tuple[Any, list[tuple[int, int]]]]:
    """Yield batches of resized pixels, and (height, width) of each image.

    After an image that cannot be read, the rest is only read to name all of them,
    by their `positions`, where these are not simply counted.
    """
    reader = _ImageReader(load(clip), clip.resize, None)
    for pixels, sizes, _ in _batches(clip, images, reader.read, positions):
        yield pixels, sizes


def unreadable(clip: OpenCLIP, images: Sequence[Any]) -> list[tuple[int, str, str]]:
    """Return position, name and reason of images that cannot be read."""
    try:
        for _ in pixel_batches(clip, images):
            pass
    except ImageReadError as error:
        return error.failures
    return []


def keyed_pixel_batches(
    clip: OpenCLIP,
    images: Sequence[Any],
    skipped: list[tuple[int, str, str]] | None = None,
) -> Iterator[tuple[Any, list[tuple[int, int]], Callable[..., None]]]:
    """Yield batches as `pixel_batches` does, and what caches their embeddings.

    For passes that give embeddings beside something else: ``put(rows, embeddings)``
    takes those of some rows of the batch. Images that cannot be read are added to
    `skipped` instead of raised, if there is such a list.
    """
    model = load(clip)
    cache = open_cache(clip.embedding_cache)
    reader = _ImageReader(model, clip.resize, cache)

    def put(
        keys: Sequence[str | None], rows: Sequence[int], embeddings: np.ndarray
    ) -> None:
        if cache is not None:
            pairs = zip(rows, embeddings, strict=True)
            named = ((keys[row], values) for row, values in pairs)
            cache.put_many({key: values for key, values in named if key is not None})

    for pixels, sizes, keys in _batches(clip, images, reader.read, skipped=skipped):
        yield pixels, sizes, functools.partial(put, keys)


def _batches(
    clip: OpenCLIP,
    images: Sequence[Any],
    read: Callable[[Any], Any],
    positions: Sequence[int] | np.ndarray | None = None,
    skipped: list[tuple[int, str, str]] | None = None,
) -> Iterator[tuple[Any, list[tuple[int, int]], list[str | None]]]:
    """Yield stacked pixels, sizes and keys of the images that `read` makes these of."""
    import torch

    failures = [] if skipped is None else skipped
    batch: list[tuple[Any, tuple[int, int], str | None]] = []

    def stack() -> tuple[Any, list[tuple[int, int]], list[str | None]]:
        pixels, sizes, keys = zip(*batch, strict=True)
        batch.clear()
        return torch.stack(pixels), list(sizes), list(keys)

    with progress_bar(len(images), "Encoding images") as progress:
        for index, result in enumerate(_read_all(clip, images, read)):
            progress.update()
            if isinstance(result, ValueError):
                if batch and skipped is None:
                    yield stack()
                position = index if positions is None else int(positions[index])
                name = image_name(given(images[index]))
                failures.append((position, name, str(result)))
            elif not failures or skipped is not None:
                batch.append(result)
                if len(batch) == clip.batch_size:
                    yield stack()
    failures.sort()
    if failures and skipped is None:
        raise ImageReadError(failures)
    if batch:
        yield stack()


def _read_all(
    clip: OpenCLIP, images: Sequence[Any], reader: Callable[[Any], Any]
) -> Iterator[Any]:
    """Yield what `reader` makes of each image, in order, reading ahead."""
    workers = clip.num_workers or min(16, os.cpu_count() or 1)
    ahead = clip.batch_size + workers
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clipad")
    pending: list[Future[Any]] = []
    try:
        for image in images:
            pending.append(pool.submit(reader, image))
            if len(pending) > ahead:
                yield pending.pop(0).result()
        while pending:
            yield pending.pop(0).result()
    finally:
        # After an interrupt nobody waits for a read that may never end.
        pool.shutdown(wait=False, cancel_futures=True)


class _ImageReader:
    """Turn one image into (key, cached embedding, pixels), or the error it gives."""

    def __init__(
        self, model: LoadedModel, resize: str, cache: EmbeddingCache | None
    ) -> None:
        self.resized = model.resizing(resize)
        self.shorter_side = min(model.input_size) if resize == "crop" else 0
        self.pixels = (id(model), resize)  # by which an image keeps them
        self.cache = cache
        self.salt = ""
        if cache is not None:
            self.salt = image_names(model, resize).salt

    def __call__(self, image: Any) -> tuple[str | None, Any, Any] | ValueError:
        try:
            with self._open(image) as (made, key, opened):
                hit = {} if self.cache is None else self.cache.get_many([str(key)])
                if hit:
                    return key, hit[str(key)], None
                pixels = self._pixels(made, opened)[0]
                return self._kept_by(made, key), None, pixels
        except MemoryError:
            return ValueError("the image needs more memory than there is")
        except ValueError as error:
            return _alone(error)

    def read(self, image: Any) -> tuple[Any, tuple[int, int], str | None] | ValueError:
        """Return pixels, (height, width) and key of an image, or the error it gives."""
        try:
            with self._open(image) as (made, key, opened):
                pixels, size = self._pixels(made, opened)
                return pixels, size, self._kept_by(made, key)
        except MemoryError:
            return ValueError("the image needs more memory than there is")
        except ValueError as error:
            return _alone(error)

    @contextlib.contextmanager
    def _open(self, image: Any) -> Iterator[tuple[dict[Any, Any], str | None, Any]]:
        """Yield what was made of an image, its key, and it or the bytes of its file."""
        made = image.made if isinstance(image, ReadOnce) else {}
        has_key = self.cache is None or self.salt in made
        if has_key and self.pixels in made:
            yield made, made.get(self.salt), None
            return
        source = given(image)
        with naming(image_name(source)), content_of(source) as content:
            is_file = isinstance(content, bytes)
            opened = content if is_file else open_image(content)
            if not has_key:
                if not is_file:
                    content = f"{opened.size}".encode() + opened.tobytes()
                made[self.salt] = _image_key(content, self.salt)
            yield made, made.get(self.salt), opened

    def _pixels(self, made: dict[Any, Any], opened: Any) -> tuple[Any, tuple[int, int]]:
        """Return pixels, and (height, width), of an image."""

        def of_image(image: Any) -> tuple[Any, tuple[int, int]]:
            self._check_shape(image)
            return self.resized(image), (image.height, image.width)

        if self.pixels not in made:
            is_file = isinstance(opened, bytes)
            with noting_warnings() as warned:
                found = open_image(opened, of_image) if is_file else of_image(opened)
            made[self.pixels] = found
            made[_WARNED] = made.get(_WARNED, False) or bool(warned)
        return made[self.pixels]

    def _kept_by(self, made: dict[Any, Any], key: str | None) -> str | None:
        """Return the key; None if the next run has to warn of the image again."""
        return None if made.get(_WARNED) else key

    def _check_shape(self, image: Any) -> None:
        """Refuse an image that needs too much memory before a square is cut out."""
        ratio = max(image.size) / min(image.size)
        if self.shorter_side**2 * ratio > _MOST_RESIZED:
            raise ValueError(
                f"the image is {ratio:.0f} times as long as it is wide, too much for "
                "resize='crop': use resize='squash', or cut it into parts"
            )


def _alone(error: ValueError) -> ValueError:
    """Return an error without its traceback, which holds what was read."""
    return ValueError(str(error))


def _check_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("Expected a list of texts, got one string. Wrap it in a list.")
    texts = list(texts)
    if not texts:
        raise ValueError("Found 0 texts while a minimum of 1 is required.")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(
                f"Expected strings, got {type(text).__name__}: {shown(text)}."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{shown(text)} is not valid Unicode: it has a lone surrogate at "
                f"position {error.start}."
            ) from None
    return texts


def _image_key(content: bytes, salt: str) -> str:
    digest = hashlib.sha256(salt.encode() + b"\0")
    digest.update(content)  # a large file needs no copy
    return digest.hexdigest()


def _text_key(text: str, salt: str) -> str:
    settings = f"{salt}\0{text}"
    return hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest()
