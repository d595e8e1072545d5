"""Exceptions that more than one module raises."""

from __future__ import annotations


class WeightsNotFound(OSError):  # noqa: N818
    """The weights of a CLIP are neither on this machine nor within reach.

    The message names the model, where it was looked for, and three remedies: the
    command that downloads the weights, a local path, or ``clip="tiny"``.

    Examples
    --------
    >>> from clipad_sklearn import OpenCLIP, WeightsNotFound
    >>> try:
    ...     OpenCLIP("ViT-B-32", "missing.safetensors").encode_text(["a photo"])
    ... except WeightsNotFound as error:
    ...     print(error)
    The weights of 'ViT-B-32' were not found. Looked in: missing.safetensors ...
    """
