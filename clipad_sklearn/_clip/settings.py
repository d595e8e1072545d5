"""`OpenCLIP`: which CLIP, and how it encodes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from .._errors import ImageReadError
from .encoding import encode_images, encode_texts
from .source import DEFAULT_WEIGHTS, is_built_in, is_folder


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
        ``"random"`` (seeded random weights, for tests). The hub, folders and
        ``"tiny"`` bring their own weights: there only None, which the default stands
        for too, and ``"random"`` are no error. A bare
        checkpoint file records neither the mean and standard deviation of its
        preprocessing nor its activation function: the model name is trusted for both.
    device : str, default="auto"
        A torch device. ``"auto"`` is CUDA where there is one, else the CPU.
    precision : {"auto", "fp32", "bf16", "fp16"}, default="auto"
        ``"auto"`` is float32 on CPU, and float16 on CUDA where its embeddings of a
        fixed input have a cosine of at least 0.9999 to those of float32. Whether
        convolutions of float32 may use TF32 on CUDA is torch's setting, not ours.
    batch_size : int, default=32
        Number of images that go through the model at once; for prompts, as many as fit
        into the tokens of `batch_size` full contexts. Where a GPU has too little
        memory, half as many are tried, and so on.
    resize : {"squash", "crop"}, default="squash"
        ``"squash"`` resizes both sides to the model's input size, whatever the aspect
        ratio: nothing is cut off, which is how the field evaluates. ``"crop"`` resizes
        the shorter side and cuts the centre: open_clip's own preprocessing.
    image_size : int, (int, int) or None, default=None
        Input size of the vision tower in pixels: one side or (height, width). None is
        the size the model was trained at. Larger shows smaller defects, at the cost
        of time: twice the side has four times as many patches. The tower's positions
        are interpolated, as open_clip does (``force_image_size``); towers that cannot
        take the size are an error. Embeddings of texts do not depend on it.
    num_workers : int or None, default=None
        Number of threads that read and resize images while the model works. None is
        one per CPU core, at most 16.
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
        pretrained: str | None = DEFAULT_WEIGHTS,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int = 32,
        resize: str = "squash",
        image_size: int | tuple[int, int] | None = None,
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
        self.image_size = image_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.embedding_cache = embedding_cache

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Settings saved by 0.1.0 have no image size.
        super().__setstate__({"image_size": None, **state})

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
            If the weights cannot be found or downloaded.
        """
        return encode_texts(self, texts)

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
            If the weights cannot be found or downloaded.
        """
        embeddings, failures = encode_images(self, images, on_error)
        if failures and on_error == "raise":
            raise ImageReadError(failures)
        return embeddings


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
    path = os.path.expanduser(text)
    if text == "tiny" or text.startswith("hf-hub:"):
        return OpenCLIP(text, None)
    model_name, slash, pretrained = text.partition("/")
    if is_folder(path) or os.path.isfile(path):
        if slash and is_built_in(model_name):
            warnings.warn(
                f"clip={text!r} is read as the path of that name in the working "
                f"directory, not as a model of open_clip. Write './{text}' to say so.",
                UserWarning,
                stacklevel=2,
            )
        return OpenCLIP(text, None) if is_folder(path) else OpenCLIP(pretrained=text)
    if not model_name or model_name[0] in ".~":
        raise ValueError(f"clip={text!r}: no such file or folder.")
    if not slash:
        if is_built_in(text):
            raise ValueError(
                f"clip={text!r}: expected '{text}/TAG' with a tag of open_clip, "
                f"'{text}/random', or './{text}' for the folder of that name."
            )
        raise ValueError(
            f"clip={text!r}: no such path, and not of the form 'model/pretrained', "
            "such as 'ViT-B-32/laion2b_s34b_b79k'. 'model/random' gives random weights."
        )
    return OpenCLIP(model_name, pretrained)
