"""The walk over folders, what is read, and what is written."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipad_sklearn import list_images
from clipad_sklearn._cli.photos import find_photos
from clipad_sklearn._files import (
    claim_outputs,
    new_file,
    read_bytes,
    remove_unfinished,
    replacing,
    scratch_folder,
    walk_images,
)
from clipad_sklearn.datasets import load_image_folder, load_sewer_ml


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 128).save(path)
    return root


def found(root: Path) -> list[str]:
    return [Path(p).relative_to(root).as_posix() for p in list_images(root)]


# -- links -------------------------------------------------------------------------


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    make(tmp_path, "store/deep/1.png", "data/2.png")
    root = tmp_path / "data"
    (root / "a").symlink_to(tmp_path / "store")
    (root / "b").symlink_to(tmp_path / "store")  # the same again
    (root / "c").symlink_to(tmp_path / "store" / "deep")  # within the former
    assert found(root) == ["2.png", "a/deep/1.png"]


@pytest.mark.parametrize("target", [".", "..", "/", "inner", "inner/up"])
def test_links_that_lead_in_circles_end(target: str, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "inner/1.png", "2.png")
    (root / "inner" / "up").symlink_to(root, target_is_directory=True)
    (root / "link").symlink_to(target, target_is_directory=True)
    assert found(root) == ["2.png", "inner/1.png"]
    assert find_photos([str(root / "**" / "*.png")]).paths == list_images(root)


def test_links_of_links_and_a_folder_that_is_a_link(tmp_path: Path) -> None:
    make(tmp_path, "store/1.png")
    (tmp_path / "first").symlink_to(tmp_path / "store")
    (tmp_path / "second").symlink_to(tmp_path / "first")
    assert found(tmp_path / "second") == ["1.png"]
    make(tmp_path, "data/2.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "second")
    assert found(tmp_path / "data") == ["2.png", "link/1.png"]


def test_a_real_folder_goes_before_a_link_to_it(tmp_path: Path) -> None:
    root = make(tmp_path, "z/1.png")
    (root / "a").symlink_to(root / "z")
    assert found(root) == ["z/1.png"]


def test_loaders_follow_links(tmp_path: Path) -> None:
    make(tmp_path, "store/1.png", "store/2.png", "data/scratch/3.png")
    (tmp_path / "data" / "good").symlink_to(tmp_path / "store")
    data = load_image_folder(tmp_path / "data")
    assert data.target.tolist() == [1, 1, -1]
    root = make(tmp_path / "sewer", "a/unused.png")
    (root / "images").symlink_to(tmp_path / "store")
    (root / "SewerML_Val.csv").write_text("Filename,Defect\n1.png,0\n2.png,1\n")
    assert load_sewer_ml(root).target.tolist() == [1, -1]


# -- what is left out --------------------------------------------------------------


SYSTEM = (
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "$Recycle.Bin",
    "@Recycle",
    "lost+found",
)


@pytest.mark.parametrize(
    "folder",
    [
        *SYSTEM,
        "lost+found",
        "System Volume Information",
        "__MACOSX",
        ".thumbs",
        "deep/@eaDir/1.png",
    ],
)
def test_folders_of_systems(folder: str, tmp_path: Path) -> None:
    make(tmp_path, "1.png", f"{folder}/2.png")
    assert found(tmp_path) == ["1.png"]
    photos = find_photos([str(tmp_path)])
    assert len(photos.paths) == 1
    assert "1 folders of the system left out" in photos.notes[0]
    # Who names one wants it.
    inner = next(p for p in tmp_path.rglob("2.png")).parent
    assert found(inner) == ["2.png"]


@pytest.mark.skipif(os.name == "nt", reason="needs pipes")
def test_pipes_sockets_and_links_to_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "1.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "to_pipe.png").symlink_to(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket.png")
        assert found(tmp_path) == ["1.png"]
        walk = walk_images(str(tmp_path))
        assert len(walk.special) == 4
        for name, kind in (
            ("pipe.png", "a pipe"),
            ("to_pipe.png", "a pipe"),
            ("device.png", "a device"),
            ("socket.png", "a socket"),
        ):
            with pytest.raises(ValueError, match=f"is {kind}, not a file"):
                read_bytes(tmp_path / name)


def test_a_link_that_leads_nowhere_is_an_error_of_its_own(tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    assert found(tmp_path) == ["1.png", "2.png"]
    with pytest.raises(ValueError, match="a link to a file that is not there"):
        read_bytes(tmp_path / "2.png")


LEASE = """
import fcntl, os, signal, sys, time
def give_back(*_):
    time.sleep(0.3)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    sys.exit()
signal.signal(signal.SIGIO, give_back)
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("lent", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs leases of files")
def test_a_file_that_a_server_has_lent_out(tmp_path: Path) -> None:
    """As Samba lends files to those who have them open."""
    make(tmp_path, "1.png")
    with subprocess.Popen(
        [sys.executable, "-c", LEASE, tmp_path / "1.png"], stdout=subprocess.PIPE
    ) as process:
        if process.stdout.readline() != b"lent\n":
            pytest.skip("no leases on this file system")
        assert read_bytes(tmp_path / "1.png").startswith(b"\x89PNG")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"the file has 1024\.0 GB; at most 1 GB"):
        read_bytes(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "closed/2.png")
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.warns(UserWarning, match="closed' and what it holds is left out"):
            assert found(tmp_path) == ["1.png"]
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_folders_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "1.png", "closed/2.png")
    scandir = os.scandir

    def refuses(path: str) -> os.ScandirIterator[str]:  # as for a user who is not root
        if "closed" in path:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("clipad_sklearn._files.os.scandir", refuses)
    with pytest.warns(UserWarning, match="permission denied"):
        assert found(tmp_path) == ["1.png"]
    photos = find_photos([str(tmp_path)])
    assert (len(photos.paths), photos.n_unreadable) == (1, 1)
    assert "closed: permission denied" in photos.notes[0]
    with pytest.raises(PermissionError, match="closed"):
        list_images(tmp_path / "closed")


def test_links_that_cannot_be_followed(tmp_path: Path) -> None:
    """Each may have been one to a folder of photos, such as on a share that is gone."""
    make(tmp_path, "1.png")
    for name, target in (
        ("gone", tmp_path / "nothing"),
        ("2026.11.25", tmp_path / "nothing"),
        ("round", "round"),
        ("gone.png", tmp_path / "nothing"),  # a photo that cannot be read
        (".hidden", tmp_path / "nothing"),
    ):
        (tmp_path / name).symlink_to(target)
    photos = find_photos([str(tmp_path)])
    assert [Path(path).name for path in photos.paths] == ["1.png", "gone.png"]
    assert photos.n_unreadable == 3
    assert "gone: no such file or directory" in " ".join(photos.notes)
    with pytest.warns(UserWarning, match="is left out: "):
        assert found(tmp_path) == ["1.png", "gone.png"]


@pytest.mark.parametrize("pattern", ["*/*.png", "closed/*.png", "*/*/*.png"])
def test_patterns_that_cannot_look_everywhere(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "open/1.png", "open/in/1.png", "closed/2.png")
    scandir = os.scandir

    def refuses(path: Any) -> os.ScandirIterator[str]:  # as for a user who is not root
        if "closed" in os.fspath(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    (tmp_path / "elsewhere").mkdir()
    photos = find_photos([str(tmp_path / pattern), str(tmp_path / "open")])
    assert photos.n_unreadable == 1
    assert any("closed: permission denied" in note for note in photos.notes)


def test_a_pattern_of_many_stars_ends(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["a"] * 60)
    make(deep, "1.png")
    pattern = tmp_path.joinpath(*["**", "a"] * 12, "**", "b*.png")
    assert find_photos([str(pattern), str(deep)]).paths == [str(deep / "1.png")]
    pattern = tmp_path.joinpath(*["**", "a"] * 12, "**", "1*.png")
    assert find_photos([str(pattern)]).paths == [str(deep / "1.png")]


@pytest.mark.parametrize("content", ["[" * 200_000, "{", "7", "\xff"])
def test_a_list_of_outputs_that_is_not_ours(content: str, tmp_path: Path) -> None:
    make(tmp_path, "1.png")
    (tmp_path / ".clipad-outputs.json").write_text(content, encoding="latin-1")
    assert found(tmp_path) == ["1.png"]
    with pytest.raises(FileExistsError, match=r"outputs\.json is there and was not"):
        claim_outputs(str(tmp_path), ["1.map.png"])


def test_outputs_of_ours(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "1.map.png", "1.overlay.png", "2.map.png", "legend.png")
    # Names alone say nothing: these are somebody's photos.
    assert len(found(tmp_path)) == 5
    with pytest.raises(FileExistsError, match="png is there and was not written"):
        claim_outputs(str(tmp_path), ["1.map.png"])
    for name in ("1.map.png", "1.overlay.png"):
        (tmp_path / name).unlink()
    claim_outputs(str(tmp_path), ["1.map.png"])
    claim_outputs(str(tmp_path), ["1.overlay.png", "1.map.png"])
    for name in ("1.map.png", "1.overlay.png"):
        (tmp_path / name).write_bytes(b"\x89PNG ... clipad score --maps")
    claim_outputs(str(tmp_path), ["1.map.png"])
    assert found(tmp_path) == ["1.png", "2.map.png", "legend.png"]
    paths = sorted(map(str, tmp_path.glob("1*.png")))
    photos = find_photos(paths)
    assert photos.paths == [str(tmp_path / "1.png")]
    # A photo that has taken the place of one.
    make(tmp_path, "1.overlay.png")
    assert found(tmp_path) == ["1.overlay.png", "1.png", "2.map.png", "legend.png"]
    # As version 0.1.0 called them.
    make(tmp_path, "3.jpg.map.png", "3.jpg.overlay.png", "3.overlay.png")
    assert "3.jpg.map.png" not in found(tmp_path)
    assert "3.overlay.png" in found(tmp_path)


# -- patterns ----------------------------------------------------------------------


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path, "a/1.png", "a/b/2.png", "c/b/3.png", "4.png"))
    Path("a/notes.txt").touch()
    for pattern, expected in (
        ("**", ["4.png", "a/1.png", "a/b/2.png", "c/b/3.png"]),
        ("**/b", ["a/b/2.png", "c/b/3.png"]),
        ("a/**/*.png", ["a/1.png", "a/b/2.png"]),
        ("**/**/**/**/[23].png", ["a/b/2.png", "c/b/3.png"]),
        ("*/b/*", ["a/b/2.png", "c/b/3.png"]),
        (f"{tmp_path}/**/4.png", [f"{tmp_path}/4.png"]),
    ):
        assert sorted(find_photos([pattern]).paths) == expected


@pytest.mark.parametrize("folder", [*SYSTEM, "__MACOSX"])
def test_patterns_leave_out_folders_of_systems(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are spelled out."""
    names = ("1.png", "a/1.png", f"{folder}/1.png", f"a/{folder}/1.png")
    monkeypatch.chdir(make(tmp_path, *names, ".hidden/1.png"))
    for pattern, expected, n_left_out in (
        ("*", ["1.png", "a/1.png"], 2),
        ("*/*.png", ["a/1.png"], 1),
        ("*/", ["a/1.png"], 2),
        ("*/*/*.png", [], 2),
        (f"{folder}/*.png", [f"{folder}/1.png"], 0),
        (f"*/{folder}/*.png", [f"a/{folder}/1.png"], 1),
        (".*/*.png", [".hidden/1.png"], 0),
    ):
        photos = find_photos([pattern, "1.png"])
        assert sorted({*photos.paths, "1.png"}) == sorted({*expected, "1.png"})
        left_out = [note for note in photos.notes if "of the system left out" in note]
        assert len(left_out) == (n_left_out > 0)
        if left_out:
            assert f"{n_left_out} folders of the system" in left_out[0]
            assert folder in left_out[0]


def test_patterns_through_links_that_lead_up(tmp_path: Path) -> None:
    """Each star that goes down and up again took 12 times as long."""
    root = make(tmp_path / "lines", *(f"line{i:02}/z.png" for i in range(12)))
    for i in range(12):
        (root / f"line{i:02}" / "up").symlink_to("..", target_is_directory=True)
    start = time.perf_counter()
    photos = find_photos([str(root.joinpath(*["*"] * 31, "*.png"))])
    assert time.perf_counter() - start < 30
    expected = {os.path.realpath(root / f"line{i:02}" / "z.png") for i in range(12)}
    assert {os.path.realpath(path) for path in photos.paths} == expected
    assert len(photos.paths) == 12


def test_folders_whose_names_look_like_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make(tmp_path, "lot[1]/a.png", "lot[1]/in/b[2].png", "2.png"))
    for pattern, expected in (
        ("lot[1]/*.png", ["lot[1]/a.png"]),
        ("lot[1]/*/b[2].png", ["lot[1]/in/b[2].png"]),
        ("lot[1]/**/*.png", ["lot[1]/a.png", "lot[1]/in/b[2].png"]),
    ):
        assert sorted(find_photos([pattern]).paths) == expected
    make(tmp_path, "lot1/c.png")
    both = find_photos(["lot[1]/*.png"]).paths
    assert both == ["lot1/c.png", "lot[1]/a.png"]


# -- writing -----------------------------------------------------------------------


def test_replacing_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250 + ".csv")  # as long as names may be
    target.write_text("old")
    target.chmod(0o640)
    (tmp_path / f"{target.name[:200]}.{os.getpid()}.tmp").write_text("a user's own")
    with replacing(target) as temporary:
        Path(temporary).write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert len(os.listdir(tmp_path)) == 2
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        raise KeyboardInterrupt
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("end", ["of the work", "of patience"])
def test_a_scratch_folder_is_gone_at_the_end(end: str) -> None:
    with scratch_folder() as folder:
        path = make(Path(folder) / "worker", "1.png")
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        if end == "of patience":
            remove_unfinished()
            assert not path.exists()
            assert not Path(folder).exists()
    assert not Path(folder).exists()


def test_names_that_nobody_foresees(tmp_path: Path) -> None:
    names = {new_file(str(tmp_path), ".clipad-") for _ in range(50)}
    assert len(names) == 50
    umask = os.umask(0)
    os.umask(umask)
    assert {stat.S_IMODE(os.stat(name).st_mode) for name in names} == {0o666 & ~umask}
