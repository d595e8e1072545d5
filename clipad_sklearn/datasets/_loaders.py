"""Loaders of local copies of labelled data sets; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._files import EXTENSIONS, Walk, is_folder, is_system_folder, walk_files
from .._images import list_images
from ._tables import read_table

PathLike = str | os.PathLike[str]

_SOURCES = {
    "MVTec AD": "https://www.mvtec.com/company/research/datasets/mvtec-ad",
    "VisA": "https://github.com/amazon-science/spot-diff",
    "Sewer-ML": "https://vap.aau.dk/sewer-ml",
}
# (image, defect or "" for good ones, mask or None, category)
_Row = tuple[str, str, str | None, str]

# Columns of Sewer-ML that name a defect; VA, ND and WaterLevel do not.
_SEWER_DEFECTS = (
    "RB", "OB", "PF", "DE", "FS", "IS", "RO", "IN", "AF", "BE", "FO", "GR", "PH", "PB",
    "OS", "OP", "OK",
)  # fmt: skip


def load_mvtec_ad(
    root: PathLike,
    category: str | Sequence[str] | None = None,
    split: str = "test",
    *,
    as_frame: bool = False,
) -> Bunch:
    """List the images, labels and masks of MVTec AD, or of a folder laid out so.

    Parameters
    ----------
    root : str or PathLike
        The folder that holds one folder for each category, with ``train/good``,
        ``test/good``, ``test/DEFECT`` and ``ground_truth/DEFECT/NAME_mask.png`` or
        ``NAME.png`` (any extension of images will do).
    category : str, sequence of str or None, default=None
        Which categories. None is all.
    split : {"test", "train"}, default="test"
        Which part. The train part holds good images only.
    as_frame : bool, default=False
        Whether to add a DataFrame.

    Returns
    -------
    Bunch
        With the attributes

        images : list of str
            Paths.
        target : ndarray of shape (n_images,)
            -1 for anomalous, +1 for good images.
        defect : list of str
            Kind of defect, "" for good images.
        masks : list of str or None
            Paths of masks, in which anomalous pixels are above 0. None for a good
            image.
        category : list of str
            Names of categories.
        frame : DataFrame
            With ``as_frame=True``: the columns image, target, defect, mask, category.

    Raises
    ------
    FileNotFoundError
        If the data set, a category, or a mask is not there.
    ValueError
        If `split` is none of these, or a category has no image.

    Notes
    -----
    No image is opened. The data set [1]_ is free for non-commercial use and has to be
    obtained from its authors.

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger, C. Steger, "MVTec AD: A Comprehensive
       Real-World Dataset for Unsupervised Anomaly Detection", CVPR, 2019.

    Examples
    --------
    >>> from clipad_sklearn.datasets import load_mvtec_ad
    >>> load_mvtec_ad("mvtec_ad", "bottle")
    Traceback (most recent call last):
        ...
    FileNotFoundError: There is no folder 'mvtec_ad'. MVTec AD is not downloaded ...
    """
    _check_split(split, ("test", "train"))
    root = _check_root(root, "MVTec AD")
    rows: list[_Row] = []
    for name in _chosen(category, lambda: _folders(root), root, "MVTec AD"):
        rows += _rows_of_category(root, name, split, "MVTec AD")
    return _bunch(rows, as_frame)


def load_visa(
    root: PathLike,
    category: str | Sequence[str] | None = None,
    split: str = "test",
    *,
    as_frame: bool = False,
) -> Bunch:
    """List the images, labels and masks of VisA.

    Parameters
    ----------
    root : str or PathLike
        The folder of the data set as downloaded, with ``split_csv/1cls.csv``; or as
        its authors' script lays it out for one class: one folder for each category,
        with ``train/good``, ``test/good``, ``test/bad`` and
        ``ground_truth/bad/NAME.png``.
    category : str, sequence of str or None, default=None
        Which categories. None is all.
    split : {"test", "train"}, default="test"
        Which part of the one-class split. The train part holds good images only.
    as_frame : bool, default=False
        Whether to add a DataFrame.

    Returns
    -------
    Bunch
        As from `load_mvtec_ad`. The defect is "anomaly" or "bad": the split does not
        name its kind.

    Raises
    ------
    FileNotFoundError
        If the data set, a category, an image or a mask is not there.
    ValueError
        If `split` is none of these, the split file lacks a column, a value or rows of
        the split, or has an unknown label or split, or a category has no image.

    Notes
    -----
    No image is opened. The data set is from [1]_, under CC BY 4.0.

    References
    ----------
    .. [1] Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer, "SPot-the-Difference
       Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV,
       2022.

    Examples
    --------
    >>> from clipad_sklearn.datasets import load_visa
    >>> load_visa("VisA", "candle")
    Traceback (most recent call last):
        ...
    FileNotFoundError: There is no folder 'VisA'. VisA is not downloaded ...
    """
    _check_split(split, ("test", "train"))
    root = _check_root(root, "VisA")
    split_file = os.path.join(root, "split_csv", "1cls.csv")
    rows: list[_Row] = []
    if os.path.isfile(split_file):
        by_category: dict[str, list[_Row]] = {}
        lines: dict[str, int] = {}  # of files
        for line, row in _visa_rows(root, split_file, split):
            by_category.setdefault(row[3], []).append(row)
            lines |= dict.fromkeys(_files_of(row), line)
        if not by_category:
            raise ValueError(f"{split_file!r} has no row of the split {split!r}.")
        for name in _chosen(category, lambda: sorted(by_category), root, "VisA"):
            if name not in by_category:
                known = ", ".join(sorted(by_category))
                raise FileNotFoundError(
                    f"VisA has no category {name!r} in {split_file!r}. It has: {known}."
                )
            rows += by_category[name]
        paths = [path for row in rows for path in _files_of(row)]
        if missing := _missing(paths):
            raise FileNotFoundError(
                f"VisA in {root!r} is not complete: {len(missing)} of {len(paths)} "
                f"files are missing, the first is {missing[0]!r}, named in "
                f"{split_file!r}, line {lines[missing[0]]}. {_obtain('VisA')}"
            )
    else:
        for name in _chosen(category, lambda: _folders(root), root, "VisA"):
            if os.path.isdir(os.path.join(root, name, "Data")):
                raise FileNotFoundError(
                    f"{root!r} looks like VisA as downloaded, but {split_file!r} is "
                    f"missing. It is part of {_SOURCES['VisA']}."
                )
            rows += _rows_of_category(root, name, split, "VisA")
    return _bunch(rows, as_frame)


def load_sewer_ml(
    root: PathLike, split: str = "val", *, as_frame: bool = False
) -> Bunch:
    """List the images and labels of Sewer-ML.

    Parameters
    ----------
    root : str or PathLike
        The folder that holds ``SewerML_Train.csv`` or ``SewerML_Val.csv``, or has them
        in ``annotations``, and the images in folders however deep.
    split : {"val", "train", "test"}, default="val"
        Which part. The labels of the test part are not public.
    as_frame : bool, default=False
        Whether to add a DataFrame.

    Returns
    -------
    Bunch
        As from `load_mvtec_ad`. An image with a defect is anomalous; `defect` is the
        codes of its defects joined by ``"+"``. `masks` is None, as there are none, and
        `category` is "sewer pipe".

    Raises
    ------
    FileNotFoundError
        If the annotations or images are not there.
    ValueError
        If `split` is none of these, or the annotations lack a column or have a label
        other than 0 and 1.

    Notes
    -----
    No image is opened: folders are only listed, so that the 1.3 million images take
    seconds. Where a name occurs in more than one folder, a folder with the split in
    its name goes first. The data set [1]_ has to be obtained from its authors.

    References
    ----------
    .. [1] J. B. Haurum, T. B. Moeslund, "Sewer-ML: A Multi-Label Sewer Defect
       Classification Dataset and Benchmark", CVPR, 2021.

    Examples
    --------
    >>> from clipad_sklearn.datasets import load_sewer_ml
    >>> load_sewer_ml("sewer_ml")
    Traceback (most recent call last):
        ...
    FileNotFoundError: There is no folder 'sewer_ml'. Sewer-ML is not downloaded ...
    """
    _check_split(split, ("val", "train", "test"))
    root = _check_root(root, "Sewer-ML")
    name = f"SewerML_{split.capitalize()}.csv"
    places = [os.path.join(root, name), os.path.join(root, "annotations", name)]
    annotations = next((path for path in places if os.path.isfile(path)), None)
    if annotations is None:
        raise FileNotFoundError(
            f"The annotations {name} of Sewer-ML are missing: looked for "
            f"{places[0]!r} and {places[1]!r}. {_obtain('Sewer-ML')}"
        )
    walk = Walk()
    folders = _folders_of_files(root, split, walk)
    images: list[str] = []
    seen: set[str] = set()
    defects: list[str] = []
    anomalous: list[bool] = []
    absent, first_absent = 0, ""
    names: dict[tuple[str, ...], str] = {}  # so that equal texts are kept once
    header: list[str] = []
    for line, fields in read_table(annotations):
        if not header:
            header = fields
            filename, label = _columns(header, ("Filename", "Defect"), annotations)
            codes = [(header.index(c), c) for c in _SEWER_DEFECTS if c in header]
            continue
        for i, column in [(label, "Defect"), *codes]:
            if fields[i] not in ("0", "1"):
                raise ValueError(
                    f"{annotations!r}, line {line}: expected {column} 0 or 1, found "
                    f"{fields[i]!r}."
                )
        within, _, name = fields[filename].replace("\\", "/").rpartition("/")
        folder = folders.get(name)
        # A folder that is named says which of several files of that name it is.
        named = os.path.join(root, *PurePosixPath(within).parts)
        if within and os.path.isfile(os.path.join(named, name)):
            folder = named
        if folder is None:
            absent += 1
            first_absent = first_absent or f"{fields[filename]!r} in line {line}"
            continue
        found: tuple[str, ...] = ()
        if fields[label] == "1":
            found = tuple(c for i, c in codes if fields[i] == "1") or ("defect",)
        image = os.path.join(folder, name)
        if image in seen:
            raise ValueError(
                f"{annotations!r}, line {line}: {fields[filename]!r} is there already."
            )
        seen.add(image)
        images.append(image)
        defects.append(names.setdefault(found, "+".join(found)))
        anomalous.append(bool(found))
    if not header:
        _columns(header, ("Filename", "Defect"), annotations)
    if absent:
        why = f"The copy of Sewer-ML is not complete. {_obtain('Sewer-ML')}"
        if walk.unreadable:
            folder, reason = walk.unreadable[0]
            why = f"{folder!r} cannot be read: {reason}."
        raise FileNotFoundError(
            f"{absent} of {absent + len(images)} images named in {annotations!r} are "
            f"not in {root!r}, the first is {first_absent}. {why}"
        )
    if not images:
        raise ValueError(f"{annotations!r} names no image.")
    data = Bunch(
        images=images,
        target=np.where(anomalous, -1, 1),
        defect=defects,
        masks=None,
        category=["sewer pipe"] * len(images),
    )
    return _with_frame(data) if as_frame else data


def load_image_folder(
    root: PathLike,
    *,
    normal: str | Sequence[str] = ("good", "normal", "ok"),
    mask_folder: PathLike | None = None,
    as_frame: bool = False,
) -> Bunch:
    """List the images of a folder that has one folder for each kind.

    Parameters
    ----------
    root : str or PathLike
        The folder. Each folder in it is a kind, such as ``good`` and ``scratch``.
        Images are found however deep.
    normal : str or sequence of str, default=("good", "normal", "ok")
        Names of folders of good images, whatever the case. All others are defects.
    mask_folder : str, PathLike or None, default=None
        Folder of masks: ``KIND/NAME_mask.png`` or ``KIND/NAME.png``, or of another
        extension of images, for the image ``KIND/NAME`` of any extension. It may lie
        in `root`. None: there are none.
    as_frame : bool, default=False
        Whether to add a DataFrame.

    Returns
    -------
    Bunch
        As from `load_mvtec_ad`; `masks` is None without a `mask_folder`. The category
        is the name of `root`.

    Raises
    ------
    FileNotFoundError
        If a folder or a mask is not there.
    ValueError
        If images lie in no folder of a kind, there is none, or `root` is laid out as a
        category of MVTec AD.

    Examples
    --------
    >>> import os, pathlib, tempfile
    >>> from clipad_sklearn.datasets import load_image_folder
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name in ("good/1.png", "good/2.png", "scratch/3.png"):
    ...         path = pathlib.Path(root, name)
    ...         path.parent.mkdir(exist_ok=True)
    ...         path.touch()
    ...     data = load_image_folder(root)
    >>> data.target, data.defect
    (array([ 1,  1, -1]), ['', '', 'scratch'])
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"There is no folder {root!r}.")
    masks = None if mask_folder is None else os.fspath(mask_folder)
    if masks is not None and not os.path.isdir(masks):
        raise FileNotFoundError(f"There is no folder of masks {masks!r}.")
    normal = [normal] if isinstance(normal, str) else list(normal)
    good = {name.lower() for name in normal}
    parent, category = os.path.split(os.path.abspath(root))
    kinds = {name.lower() for name in _folders(root)}
    if not kinds & good and os.path.isdir(os.path.join(root, "test", "good")):
        raise ValueError(
            f"{root!r} is laid out as a category of MVTec AD, with test/good: use "
            f"load_mvtec_ad({parent!r}, {category!r})."
        )
    rows: list[_Row] = []
    missing: list[str] = []
    used: dict[str, str] = {}  # mask -> its image
    masks_of: dict[str, dict[str, str]] = {}
    inside = None if masks is None else os.path.realpath(masks)
    is_inside: dict[str, bool] = {}  # by folder
    for path in list_images(root):
        folder = os.path.dirname(path)
        if folder not in is_inside:
            real = os.path.realpath(folder) + os.sep
            is_inside[folder] = inside is not None and real.startswith(inside + os.sep)
        if is_inside[folder]:
            continue
        relative = os.path.relpath(path, root)
        kind, *rest = relative.split(os.sep)
        if not rest:
            raise ValueError(
                f"{path!r} lies in no folder of a kind: put images into folders such "
                f"as {os.path.join(root, normal[0])!r} and "
                f"{os.path.join(root, 'scratch')!r}."
            )
        if kind.lower() in good:
            rows.append((path, "", None, category))
            continue
        mask = None
        if masks is not None:
            mask_folder = os.path.join(masks, os.path.dirname(relative))
            if mask_folder not in masks_of:
                masks_of[mask_folder] = _names_by_stem(mask_folder)
            mask = _mask_of(masks_of[mask_folder], path)
            if mask is None:
                missing.append(path)
            else:
                _check_used_once(used, mask, path)
        rows.append((path, kind, mask, category))
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images have no mask in {masks!r}, the first is "
            f"{missing[0]!r}: looked for {_looked_for(missing[0])}."
        )
    if not rows:
        raise ValueError(f"No image found in the folders of {root!r}.")
    data = _bunch(rows, as_frame=False)
    if masks is None:
        data.masks = None
    return _with_frame(data) if as_frame else data


# -- one layout for MVTec AD and the one-class VisA ------------------------------


def _rows_of_category(root: str, name: str, split: str, data_set: str) -> list[_Row]:
    folder = os.path.join(root, name, split)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"The category {name!r} of {data_set} is missing or not complete: there is "
            f"no folder {folder!r}. {_obtain(data_set)}"
        )
    rows: list[_Row] = []
    missing: list[str] = []
    used: dict[str, str] = {}  # mask -> its image
    for kind in _folders(folder):
        mask_folder = os.path.join(root, name, "ground_truth", kind)
        masks = {} if kind == "good" else _names_by_stem(mask_folder)
        for path in list_images(os.path.join(folder, kind)):
            if kind == "good":
                rows.append((path, "", None, name))
                continue
            mask = _mask_of(masks, path)
            if mask is None:
                missing.append(path)
            else:
                _check_used_once(used, mask, path)
            rows.append((path, kind, mask, name))
    if missing:
        raise FileNotFoundError(
            f"The category {name!r} of {data_set} is not complete: {len(missing)} "
            f"images have no mask in {os.path.join(root, name, 'ground_truth')!r}, "
            f"the first is {missing[0]!r}: looked for {_looked_for(missing[0])}. If it "
            f"is the data set itself: {_obtain(data_set)}"
        )
    if not rows:
        raise ValueError(
            f"The category {name!r} of {data_set} is empty: {folder!r} has no image "
            f"in its folders. {_obtain(data_set)}"
        )
    return rows


def _check_used_once(used: dict[str, str], mask: str, path: str) -> None:
    other = used.setdefault(mask, path)
    if other != path:
        raise ValueError(
            f"{other!r} and {path!r} would have the same mask, {mask!r}: give images "
            "of one kind different names."
        )


def _mask_of(names: dict[str, str], image: str) -> str | None:
    """Return the mask of an image: of its name, with or without ``_mask``."""
    stem = os.path.splitext(os.path.basename(image))[0]
    return names.get(f"{stem}_mask", names.get(stem))


def _looked_for(image: str) -> str:
    stem = os.path.splitext(os.path.basename(image))[0]
    return f"{stem}_mask.png, {stem}.png or another extension of images"


def _names_by_stem(folder: str) -> dict[str, str]:
    """Return the images of a folder, by their names without extension."""
    found: dict[str, str] = {}
    if not os.path.isdir(folder):
        return found
    for name in sorted(os.listdir(folder), reverse=True):
        stem, extension = os.path.splitext(name)
        path = os.path.join(folder, name)
        if extension.lower() not in EXTENSIONS or not os.path.isfile(path):
            continue
        # Of several the one that the data sets use.
        if extension == ".png" or not found.get(stem, "").endswith(".png"):
            found[stem] = path
    return found


# -- VisA as downloaded ----------------------------------------------------------


def _visa_rows(root: str, split_file: str, split: str) -> Iterator[tuple[int, _Row]]:
    """Yield the line and the row of each image of the split."""
    wanted = ("object", "split", "label", "image", "mask")
    places: list[int] = []
    lines: dict[str, int] = {}  # of images
    for line, fields in read_table(split_file):
        if not places:
            places = _columns(fields, wanted, split_file)
            continue
        name, part, label, image, mask = (fields[i] for i in places)
        if label not in ("normal", "anomaly"):
            raise ValueError(
                f"{split_file!r}, line {line}: expected the label 'normal' or "
                f"'anomaly', found {label!r}."
            )
        if part not in ("train", "test"):
            raise ValueError(
                f"{split_file!r}, line {line}: expected the split 'train' or 'test', "
                f"found {part!r}."
            )
        for column, value in (("object", name), ("image", image)):
            if not value:
                raise ValueError(
                    f"{split_file!r}, line {line}: the {column} is missing."
                )
        if (other := lines.setdefault(image, line)) != line:
            raise ValueError(
                f"{split_file!r}, line {line}: {image!r} is there already, in line "
                f"{other}."
            )
        if label == "anomaly" and not mask:
            raise ValueError(
                f"{split_file!r}, line {line}: the anomaly {image!r} has no mask."
            )
        if part != split:
            continue
        bad = label == "anomaly"
        path, mask_path = (
            os.path.join(root, *PurePosixPath(relative.replace("\\", "/")).parts)
            for relative in (image, mask)
        )
        yield line, (path, "anomaly" if bad else "", mask_path if bad else None, name)


# -- checks ----------------------------------------------------------------------


def _obtain(data_set: str) -> str:
    return f"Obtain it from {_SOURCES[data_set]}."


def _check_root(root: PathLike, data_set: str) -> str:
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"There is no folder {root!r}. {data_set} is not downloaded by this "
            f"library. {_obtain(data_set)}"
        )
    return root


def _check_split(split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        names = ", ".join(map(repr, splits))
        raise ValueError(f"split={split!r}: expected one of {names}.")


def _chosen(
    category: str | Sequence[str] | None,
    all_names: Callable[[], list[str]],
    root: str,
    data_set: str,
) -> list[str]:
    if category is None:
        names = all_names()
        if not names:
            raise FileNotFoundError(
                f"{root!r} has no category of {data_set}. {_obtain(data_set)}"
            )
        return names
    return [category] if isinstance(category, str) else list(category)


def _folders(root: str) -> list[str]:
    with os.scandir(root) as entries:
        return sorted(
            entry.name
            for entry in entries
            if is_folder(entry) and not is_system_folder(entry.name)
        )


def _files(folder: str) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not is_folder(entry)}


def _folders_of_files(root: str, split: str, walk: Walk) -> dict[str, str]:
    """Return the folder of each file below `root`, by the name of the file."""
    folders: dict[str, str] = {}
    for parent, names in walk_files(root, walk):
        if split in os.path.relpath(parent, root).lower():
            folders.update(dict.fromkeys(names, parent))
        else:
            for name in names:
                folders.setdefault(name, parent)
    return folders


def _columns(header: list[str], names: Sequence[str], path: str) -> list[int]:
    lacking = [name for name in names if name not in header]
    if lacking:
        hint = ""
        if "Defect" in lacking and "Filename" in header:
            hint = " The labels of the test part of Sewer-ML are not public."
        raise ValueError(
            f"{path!r} lacks the column {', '.join(map(repr, lacking))}; it has "
            f"{', '.join(map(repr, header)) or 'none'}.{hint}"
        )
    for name in names:
        if header.count(name) > 1:
            raise ValueError(f"{path!r} has the column {name!r} more than once.")
    return [header.index(name) for name in names]


def _files_of(row: _Row) -> list[str]:
    return [path for path in (row[0], row[2]) if path is not None]


def _missing(paths: Sequence[str]) -> list[str]:
    # One listing per folder is much faster than asking for each file.
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _files(folder) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            missing.append(path)
    return missing


def _bunch(rows: list[_Row], as_frame: bool) -> Bunch:
    images, defects, masks, categories = map(list, zip(*rows, strict=True))
    data = Bunch(
        images=images,
        target=np.where([defect != "" for defect in defects], -1, 1),
        defect=defects,
        masks=masks,
        category=categories,
    )
    return _with_frame(data) if as_frame else data


def _with_frame(data: Bunch) -> Bunch:
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("as_frame=True needs pandas: pip install pandas") from error
    columns: dict[str, Any] = {
        "image": data.images,
        "target": data.target,
        "defect": data.defect,
        # Or else pandas turns None into NaN.
        "mask": pd.Series(data.masks or [None] * len(data.images), dtype=object),
        "category": data.category,
    }
    data.frame = pd.DataFrame(columns)
    return data
