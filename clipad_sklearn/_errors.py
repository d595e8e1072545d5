"""The public exceptions."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Escape what a terminal would obey or cannot show, not spaces of any script."""
    return "".join(
        letter
        if letter.isprintable()
        or unicodedata.category(letter) == "Zs"
        or letter in "\u200c\u200d"  # join letters and emoji
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def shown(text: object) -> str:
    """Return what messages show of a text: of one that is long, both ends."""
    whole = repr(text)
    return whole if len(whole) <= 100 else f"{whole[:60]} ... {whole[-20:]}"


class ImageReadError(ValueError):
    """One or several images could not be read.

    Parameters
    ----------
    failures : list of (int, str, str)
        Position in the input, name (the path, or the kind of object) and reason of
        every image that could not be read.

    Attributes
    ----------
    failures : list of (int, str, str)
        As given.

    Examples
    --------
    >>> from clipad_sklearn import CLIPImageEncoder
    >>> CLIPImageEncoder("tiny").fit_transform(["missing.png"])
    Traceback (most recent call last):
        ...
    clipad_sklearn._errors.ImageReadError: 1 image could not be read:
      0: missing.png: no such file
    """

    def __init__(self, failures: list[tuple[int, str, str]]) -> None:
        self.failures = failures
        count = (
            "1 image could not be read"
            if len(failures) == 1
            else f"{len(failures)} images could not be read"
        )
        lines = (
            f"  {index}: {printable(f'{name}: {reason}')}"
            for index, name, reason in failures
        )
        super().__init__("\n".join([f"{count}:", *lines]))

    def __reduce__(self) -> tuple[type, tuple[list[tuple[int, str, str]]]]:
        return type(self), (self.failures,)


class NotNumbersError(ValueError):
    """What a model makes of at least one of the images are no numbers."""


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
    The weights of 'ViT-B-32/missing.safetensors' were not found. Looked in: ...
    """
