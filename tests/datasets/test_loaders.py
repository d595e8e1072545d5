"""Loaders, on miniature trees of the real layouts."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import (
    SEWER_HEADER,
    write_mvtec_ad,
    write_sewer_ml,
    write_visa,
    write_visa_one_class,
)

from clipad_sklearn import SDPPlusDetector, metrics, plotting
from clipad_sklearn._masks import mask_pixels
from clipad_sklearn.datasets import (
    load_image_folder,
    load_mvtec_ad,
    load_sewer_ml,
    load_visa,
)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    return write_mvtec_ad(tmp_path / "mvtec")


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    return write_visa(tmp_path / "visa")


@pytest.fixture
def visa_one_class(tmp_path: Path) -> Path:
    return write_visa_one_class(tmp_path / "1cls")


@pytest.fixture
def sewer(tmp_path: Path) -> Path:
    return write_sewer_ml(tmp_path / "sewer")


def check(data: object, n_good: int, n_bad: int) -> None:
    """What holds for every data set with masks."""
    assert (data.target == 1).sum() == n_good
    assert (data.target == -1).sum() == n_bad
    assert [d == "" for d in data.defect] == (data.target == 1).tolist()
    for image, target, mask in zip(data.images, data.target, data.masks, strict=True):
        assert (mask is None) == (target == 1)
        if mask is not None:
            with Image.open(image) as opened, Image.open(mask) as opened_mask:
                assert opened.size == opened_mask.size
                assert np.any(np.asarray(opened_mask) > 0)
    assert len(data.category) == len(data.images)


def test_mvtec_ad(mvtec: Path) -> None:
    (mvtec / "license.txt").touch()
    data = load_mvtec_ad(mvtec, "bottle")
    check(data, 4, 4)
    assert set(data.defect) == {"", "scratch", "hole"}
    assert set(data.category) == {"bottle"}
    assert data.images[0].startswith(str(mvtec))
    everything = load_mvtec_ad(str(mvtec))
    check(everything, 8, 8)
    assert everything.category == ["bottle"] * 8 + ["wood"] * 8
    assert load_mvtec_ad(mvtec, ["wood", "bottle"]).category[0] == "wood"
    train = load_mvtec_ad(mvtec, "wood", "train")
    check(train, 2, 0)


def test_visa_in_both_layouts(visa: Path, visa_one_class: Path) -> None:
    check(load_visa(visa, "candle"), 2, 4)
    check(load_visa(visa), 4, 8)
    check(load_visa(visa, "candle", "train"), 2, 0)
    check(load_visa(visa_one_class, "candle"), 4, 4)
    check(load_visa(visa_one_class, split="train"), 8, 0)
    assert load_visa(visa).category == ["candle"] * 6 + ["pcb1"] * 6


def test_sewer_ml(sewer: Path) -> None:
    data = load_sewer_ml(sewer)
    assert data.masks is None
    assert data.target.tolist() == [1, -1] * 4
    assert data.defect[1] == "RB"
    assert data.defect[3] == "RB+FS"
    assert all(Path(path).is_file() for path in data.images)
    # Annotations may lie in a folder of their own, and another part beside it.
    (sewer / "annotations").mkdir()
    shutil.move(sewer / "SewerML_Val.csv", sewer / "annotations")
    (sewer / "Train").mkdir()
    (sewer / "Train" / "00000000.png").touch()
    assert load_sewer_ml(sewer).images == data.images


def test_sewer_ml_takes_no_image_apart(tmp_path: Path) -> None:
    # Empty files are no images: what opened one would fail.
    n = 20_000
    folder = tmp_path / "Train"
    folder.mkdir()
    with open(tmp_path / "SewerML_Train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SEWER_HEADER)
        for i in range(n):
            (folder / f"{i:08d}.png").touch()
            writer.writerow([f"{i:08d}.png", 5, *[0] * 18, 1 - i % 2, i % 2])
    data = load_sewer_ml(tmp_path, "train")
    assert len(data.images) == n
    assert (data.target == -1).sum() == n // 2


def test_image_folder(mvtec: Path) -> None:
    data = load_image_folder(mvtec / "wood" / "test")
    assert data.masks is None
    assert set(data.category) == {"test"}
    assert (data.target == 1).sum() == (data.target == -1).sum() == 4
    masks = mvtec / "wood" / "ground_truth"
    check(load_image_folder(mvtec / "wood" / "test", mask_folder=masks), 4, 4)
    # Masks may lie among the kinds.
    shutil.move(masks, mvtec / "wood" / "test")
    inside = mvtec / "wood" / "test" / "ground_truth"
    check(load_image_folder(mvtec / "wood" / "test", mask_folder=inside), 4, 4)
    other = load_image_folder(mvtec / "wood" / "test", normal="hole", mask_folder=None)
    assert (other.target == 1).sum() == 2


def test_masks_through_a_link_and_of_equal_names(mvtec: Path, tmp_path: Path) -> None:
    test, masks = mvtec / "wood" / "test", mvtec / "wood" / "ground_truth"
    shutil.move(masks, test)
    (tmp_path / "link").symlink_to(test)
    through = tmp_path / "link" / "ground_truth"
    check(load_image_folder(test, mask_folder=through), 4, 4)
    check(load_image_folder(tmp_path / "link", mask_folder=test / "ground_truth"), 4, 4)
    shutil.move(test / "ground_truth", masks)
    first = next((test / "hole").glob("*.png"))
    (test / "hole" / "more").mkdir()
    shutil.copy(first, test / "hole" / "more")
    with pytest.raises(ValueError, match="would have the same mask"):
        load_mvtec_ad(mvtec, "wood")


def test_as_frame(mvtec: Path, sewer: Path) -> None:
    frame = load_mvtec_ad(mvtec, "wood", as_frame=True).frame
    assert list(frame) == ["image", "target", "defect", "mask", "category"]
    assert frame["mask"].notna().sum() == 4
    assert len(load_sewer_ml(sewer, as_frame=True).frame) == 8


def test_sewer_ml_with_folders_in_the_table(sewer: Path) -> None:
    """Of two files of one name, the one that the table means."""
    path = sewer / SEWER
    shutil.copy(sewer / "val00" / "00000000.png", sewer / "val01" / "00000000.png")
    text = path.read_text()
    path.write_text(text.replace("00000000.png", "val01/00000000.png"))
    images = load_sewer_ml(sewer).images
    assert images[0] == str(sewer / "val01" / "00000000.png")
    path.write_text(text.replace("00000000.png", "val00\\00000000.png"))
    assert load_sewer_ml(sewer).images[0] == str(sewer / "val00" / "00000000.png")


def remove(*names: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        path = root.joinpath(*names)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def replace(name: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, count))

    return spoil


def empty(*names: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        for path in root.joinpath(*names).rglob("*.*"):
            path.unlink()

    return spoil


SPLIT = "split_csv/1cls.csv"
SEWER = "SewerML_Val.csv"

MALFORMED = [
    ("mvtec", remove("wood", "ground_truth", "hole", "003_mask.png"),
     FileNotFoundError, r"'wood'.*1 images have no mask.*hole.003\.png.*mvtec\.com"),
    ("mvtec", remove("wood", "test"),
     FileNotFoundError, r"'wood' of MVTec AD is missing or not complete.*mvtec\.com"),
    ("mvtec", empty("wood", "test"), ValueError, r"'wood' of MVTec AD is empty"),
    ("visa", replace(SPLIT, "mask", "masks"),
     ValueError, r"1cls\.csv' lacks the column 'mask'; it has 'object'"),
    ("visa", replace(SPLIT, "anomaly", "broken"),
     ValueError, r"line 3: expected the label 'normal' or 'anomaly', found 'broken'"),
    ("visa", replace(SPLIT, ",candle/Data/Masks/Anomaly/001.png", ","),
     ValueError, r"line 3: the anomaly 'candle.*001\.JPG' has no mask"),
    ("visa", replace(SPLIT, "pcb1,train,normal", "pcb1,normal"),
     ValueError, r"line 10: expected 5 fields"),
    ("visa", replace(SPLIT, "pcb1,train", "pcb1,tset"),
     ValueError, r"line 10: expected the split 'train' or 'test', found 'tset'"),
    ("visa", replace(SPLIT, "test,", "train,", -1),
     ValueError, r"1cls\.csv' has no row of the split 'test'"),
    ("visa", replace(SPLIT, ",candle/Data/Images/Anomaly/001.JPG,", ",,"),
     ValueError, r"line 3: the image is missing"),
    ("visa", replace(SPLIT, "candle/Data/Images/Anomaly/001.JPG", "candle/Data"),
     FileNotFoundError, r"1 of \d+ files are missing.*candle.Data'"),
    ("visa", remove("candle", "Data", "Masks", "Anomaly", "001.png"),
     FileNotFoundError, r"1 of \d+ files are missing.*001\.png.*spot-diff"),
    ("visa", remove("pcb1", "Data", "Images"),
     FileNotFoundError, r"6 of \d+ files are missing.*pcb1"),
    ("visa", remove("split_csv"),
     FileNotFoundError, r"looks like VisA as downloaded, but .*1cls\.csv"),
    ("visa_one_class", remove("pcb1", "ground_truth", "bad", "001.png"),
     FileNotFoundError, r"'pcb1' of VisA .*no mask"),
    ("visa_one_class", empty("pcb1", "test"), ValueError, r"'pcb1' of VisA is empty"),
    ("sewer", remove(SEWER),
     FileNotFoundError, r"SewerML_Val\.csv of Sewer-ML are missing.*vap\.aau\.dk"),
    ("sewer", replace(SEWER, "Defect", "Fault"),
     ValueError, r"lacks the column 'Defect'.*not public"),
    ("sewer", replace(SEWER, "Filename", "Name"), ValueError, r"lacks the column 'Fil"),
    ("sewer", replace(SEWER, "0,1\n", "0,7\n"), ValueError, r"line 3.*Defect 0 or 1"),
    ("sewer", remove("val01"), FileNotFoundError, r"4 of 8 images .*'00000001\.png'"),
]  # fmt: skip

LOADERS = {
    "mvtec": load_mvtec_ad,
    "visa": load_visa,
    "visa_one_class": load_visa,
    "sewer": load_sewer_ml,
}


@pytest.mark.parametrize(("tree", "spoil", "error", "message"), MALFORMED)
def test_malformed_trees(
    tree: str,
    spoil: Callable[[Path], None],
    error: type[Exception],
    message: str,
    request: pytest.FixtureRequest,
) -> None:
    root = request.getfixturevalue(tree)
    LOADERS[tree](root)
    if tree == "sewer":
        path = root / SEWER
        path.write_text(path.read_text().replace("\r\n", "\n"))
    spoil(root)
    with pytest.raises(error, match=f"(?s){message}"):
        LOADERS[tree](root)


@pytest.mark.parametrize("load", [load_mvtec_ad, load_visa, load_sewer_ml])
def test_absent_data_sets(load: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*Obtain it from"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="Obtain it from https"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"split='validation': expected one of"):
        load(tmp_path, split="validation")


def test_unknown_categories(mvtec: Path, visa: Path) -> None:
    with pytest.raises(FileNotFoundError, match="'cable' of MVTec AD is missing"):
        load_mvtec_ad(mvtec, "cable")
    with pytest.raises(FileNotFoundError, match=r"no category 'cable'.*candle, pcb1"):
        load_visa(visa, "cable")


def test_image_folders_that_are_none(mvtec: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a category of MVTec AD.*'bottle'"):
        load_image_folder(mvtec / "bottle")
    with pytest.raises(ValueError, match="lies in no folder of a kind"):
        load_image_folder(mvtec / "wood" / "test" / "good")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No image found"):
        load_image_folder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="There is no folder of masks"):
        load_image_folder(mvtec / "wood" / "test", mask_folder=tmp_path / "nowhere")
    masks = mvtec / "wood" / "ground_truth"
    remove("hole", "003_mask.png")(masks)
    with pytest.raises(FileNotFoundError, match="1 images have no mask"):
        load_image_folder(mvtec / "wood" / "test", mask_folder=masks)


def test_masks_fit_detectors_and_metrics(visa: Path) -> None:
    """Masks of small numbers, as VisA has them, from the Bunch and from its frame."""
    pytest.importorskip("pandas")
    data = load_visa(visa, "candle", as_frame=True)
    for path in filter(None, data.masks):
        with Image.open(path) as opened:
            pixels = np.asarray(opened) > 0
        Image.fromarray(pixels.astype(np.uint8) * 2).save(path)
    assert [type(mask) for mask in data.frame["mask"]] == [type(m) for m in data.masks]
    detector = SDPPlusDetector(
        "tiny", n_epochs=1, sigma=2, temperature=0.2, random_state=0
    )
    coefs = detector.fit(data.images, data.masks).coefs_
    detector.fit(data.frame["image"], data.frame["mask"])
    np.testing.assert_array_equal(detector.coefs_, coefs)
    masks = [None if mask is None else mask_pixels(mask) for mask in data.masks]
    detector.fit(data.images, masks)
    np.testing.assert_array_equal(detector.coefs_, coefs)
    maps = detector.anomaly_maps(data.images)
    score = metrics.get_scorer("pro")(detector, data.images, data.masks)
    assert score == metrics.pro(masks, maps)
    display = plotting.AnomalyMapDisplay.from_predictions(
        data.images, maps, masks=data.frame["mask"]
    )
    assert display.masks[data.masks.index(None)] is None


def test_links_that_lead_nowhere(mvtec: Path, visa: Path, sewer: Path) -> None:
    """One among the data is no reason to end."""
    for folder in (mvtec, mvtec / "wood" / "test", visa, sewer):
        (folder / "loop").symlink_to("loop")
        (folder / "gone").symlink_to("nowhere")
    assert len(load_mvtec_ad(mvtec, "wood").images) == 8
    assert len(load_mvtec_ad(mvtec).images) > 8
    load_visa(visa)
    load_sewer_ml(sewer)
    remove("val00", "00000000.png")(sewer)
    with pytest.raises(FileNotFoundError, match=r"'.*' cannot be read: "):
        load_sewer_ml(sewer)


def test_an_image_folder_with_one_mask_for_two(mvtec: Path) -> None:
    test, masks = mvtec / "wood" / "test", mvtec / "wood" / "ground_truth"
    first = next((test / "hole").glob("*.png"))
    shutil.copy(first, first.with_suffix(".jpg"))
    with pytest.raises(ValueError, match="would have the same mask"):
        load_image_folder(test, mask_folder=masks)
