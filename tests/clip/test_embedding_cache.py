"""Tests of the caches of embeddings, with real processes, kills and damage."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipad_sklearn._clip import embedding_cache as _embedding_cache
from clipad_sklearn._clip.embedding_cache import FolderCache, MemoryCache, open_cache

WIDTH = 64


def _key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def _embedding(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(WIDTH).astype(np.float32)


def _items(*numbers: int) -> dict[str, np.ndarray]:
    return {_key(number): _embedding(number) for number in numbers}


def _known(cache: MemoryCache | FolderCache, *numbers: int) -> list[int]:
    """Return the numbers whose embeddings are known, all of which must be right."""
    hits = cache.get_many([_key(number) for number in numbers])
    known = [number for number in numbers if _key(number) in hits]
    assert len(hits) == len(known)
    for number in known:
        np.testing.assert_array_equal(hits[_key(number)], _embedding(number))
    return known


NewCache = Callable[..., FolderCache]


@pytest.fixture
def new_cache(tmp_path: Path) -> Iterator[NewCache]:
    """Make folder caches on one folder, closed after the test."""
    caches: list[FolderCache] = []

    def new(folder: Path = tmp_path / "cache", **arguments: Any) -> FolderCache:
        caches.append(FolderCache(folder, **arguments))
        return caches[-1]

    yield new
    for cache in caches:
        cache.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets the time in hours."""

    def set_hour(hour: int) -> None:
        monkeypatch.setattr(_embedding_cache, "_now", lambda: hour * 3600 + 10**9)

    set_hour(0)
    return set_hour


# Both kinds


@pytest.fixture(params=["memory", "folder"])
def any_cache(
    request: pytest.FixtureRequest, new_cache: NewCache
) -> MemoryCache | FolderCache:
    return MemoryCache() if request.param == "memory" else new_cache()


def test_get_and_put(any_cache: MemoryCache | FolderCache) -> None:
    assert any_cache.get_many([_key(1)]) == {}
    any_cache.put_many({})
    any_cache.put_many(_items(1, 2, 3))
    any_cache.put_many(_items(2, 4))
    assert _known(any_cache, 5, 4, 3, 2, 1, 0) == [4, 3, 2, 1]
    assert any_cache.get_many([]) == {}
    twice = any_cache.get_many([_key(1), _key(1)])
    assert list(twice) == [_key(1)]
    assert twice[_key(1)].dtype == np.float32
    info = any_cache.info()
    assert info["entries"] == 4
    assert info["bytes"] >= 4 * WIDTH * 4


def test_a_later_embedding_replaces(any_cache: MemoryCache | FolderCache) -> None:
    any_cache.put_many({_key(1): _embedding(2)})
    any_cache.put_many(_items(1))
    assert _known(any_cache, 1) == [1]
    assert any_cache.info()["entries"] == 1


def test_nobody_can_change_an_embedding(any_cache: MemoryCache | FolderCache) -> None:
    batch = np.stack([_embedding(1), _embedding(2)])
    any_cache.put_many({_key(1): batch[0], _key(2): batch[1]})
    batch[:] = 0
    hit = any_cache.get_many([_key(1)])[_key(1)]
    with pytest.raises(ValueError, match="read-only"):
        hit[0] = 0
    assert _known(any_cache, 1, 2) == [1, 2]


def test_clear(any_cache: MemoryCache | FolderCache) -> None:
    any_cache.put_many(_items(1, 2))
    any_cache.clear()
    assert _known(any_cache, 1, 2) == []
    assert any_cache.info()["entries"] == 0
    any_cache.put_many(_items(2))
    assert _known(any_cache, 1, 2) == [2]


def test_only_vectors(any_cache: MemoryCache | FolderCache) -> None:
    with pytest.raises(ValueError, match=r"one dimension, got shape \(1, 3\)"):
        any_cache.put_many({_key(1): np.zeros((1, 3), np.float32)})


def test_eight_threads(any_cache: MemoryCache | FolderCache) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(15):
                numbers = choose.sample(range(60), 10)
                any_cache.put_many(_items(*numbers))
                assert _known(any_cache, *numbers) == numbers
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FORK = """
import os, signal, sys, threading, warnings
import numpy as np
from clipad_sklearn._clip.embedding_cache import open_cache

warnings.simplefilter("error")
# Python 3.12 warns of every fork in a process with threads.
warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
caches = [open_cache("memory"), open_cache(sys.argv[1])]
vector = np.arange(640, dtype=np.float32)
done = False

def work():
    count = 0
    while not done:
        for cache in caches:
            cache.put_many({f"thread{count % 50}": vector})
            cache.get_many([f"thread{i}" for i in range(50)])
        count += 1

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
try:
    for number in range(25):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a deadlock ends as a failure
            for cache in caches:
                cache.put_many({f"child{number}": vector + number})
                hits = cache.get_many([f"child{number}"])
                assert (hits[f"child{number}"] == vector + number).all()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, f"child {number} ended with status {status}"
finally:
    done = True
    for thread in threads:
        thread.join()
assert "child0" not in caches[0].get_many(["child0"])
assert len(caches[1].get_many([f"child{i}" for i in range(25)])) == 25
assert caches[1].verify()["damaged"] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork_while_other_threads_use_the_caches(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "cache")], check=True, timeout=200
    )


def test_open_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_cache(None) is None
    memory = open_cache("memory")
    assert isinstance(memory, MemoryCache)
    assert open_cache("memory") is memory
    monkeypatch.chdir(tmp_path)
    folder = open_cache(tmp_path / "cache")
    assert isinstance(folder, FolderCache)
    assert open_cache("cache") is folder
    assert open_cache(str(tmp_path / "cache") + os.sep) is folder
    assert open_cache(tmp_path / "other") is not folder
    assert os.listdir(tmp_path) == []  # nothing is created before it is needed


# Memory


def test_memory_drops_the_least_recently_used() -> None:
    entry = WIDTH * 4 + _embedding_cache._ENTRY_BYTES
    cache = MemoryCache(max_bytes=3 * entry)
    cache.put_many(_items(1, 2, 3))
    cache.get_many([_key(1)])
    cache.put_many(_items(4))
    assert _known(cache, 1, 2, 3, 4) == [1, 3, 4]
    assert cache.info() == {
        "entries": 3,
        "bytes": 3 * entry,
        "max_bytes": 3 * entry,
        "path": None,
    }


def test_memory_refuses_what_exceeds_the_bound() -> None:
    cache = MemoryCache(max_bytes=1000)
    cache.put_many({_key(1): np.zeros(1000, np.float32)})
    assert cache.info()["bytes"] == 0
    cache.put_many(_items(2))
    assert _known(cache, 2) == [2]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 9), max_size=4)), max_size=30
    )
)
def test_memory_behaves_like_a_simple_model(steps: list[tuple[bool, Any]]) -> None:
    cache = MemoryCache(max_bytes=5 * (WIDTH * 4 + _embedding_cache._ENTRY_BYTES))
    model: OrderedDict[int, None] = OrderedDict()
    for is_put, numbers in steps:
        unique = list(dict.fromkeys(numbers))
        if is_put:
            cache.put_many(_items(*unique))
        else:
            assert _known(cache, *unique) == [n for n in unique if n in model]
        for number in unique:
            if is_put or number in model:
                model[number] = None
                model.move_to_end(number)
            while len(model) > 5:
                model.popitem(last=False)
    assert cache.info()["entries"] == len(model)


# Folder


def test_folder_is_shared_and_lasts(new_cache: NewCache) -> None:
    first, second = new_cache(), new_cache()
    first.put_many(_items(*range(3000)))
    assert _known(second, *range(3010)) == list(range(3000))
    first.close()
    second.close()
    assert os.listdir(first.folder) == ["embeddings-v1.sqlite"]
    assert _known(new_cache(), 7) == [7]
    assert first.verify() == {"entries": 3000, "damaged": 0}


def test_folder_reading_creates_nothing(new_cache: NewCache) -> None:
    cache = new_cache()
    assert cache.get_many([_key(1)]) == {}
    assert cache.verify() == {"entries": 0, "damaged": 0}
    assert cache.info() == {
        "entries": 0,
        "bytes": 0,
        "max_bytes": 10 * 2**30,
        "path": cache.path,
    }
    cache.clear()
    assert not os.path.exists(cache.folder)


def test_folder_is_bounded(new_cache: NewCache) -> None:
    bound = 2**20
    cache = new_cache(max_bytes=bound)
    for start in range(0, 6000, 100):
        cache.put_many(_items(*range(start, start + 100)))
        assert os.path.getsize(cache.path) <= bound
    known = _known(cache, *range(6000))
    assert known[-100:] == list(range(5900, 6000))  # the last ones stay
    assert known == list(range(known[0], 6000))  # and the first ones left first
    assert len(known) * WIDTH * 4 > bound / 4
    cache.put_many(_items(*range(6000, 12000)))  # more than fits at once
    assert os.path.getsize(cache.path) <= bound
    assert cache.verify()["damaged"] == 0


def test_folder_shrinks_to_a_lower_bound(new_cache: NewCache) -> None:
    large = new_cache()
    large.put_many(_items(*range(4000)))
    large.close()
    before = os.path.getsize(large.path)
    small = new_cache(max_bytes=before // 2)
    small.put_many(_items(5000))
    small.close()
    assert os.path.getsize(small.path) <= before // 2
    assert _known(small, 3999, 5000) == [3999, 5000]


def test_folder_too_small_for_anything_stores_nothing(new_cache: NewCache) -> None:
    cache = new_cache(max_bytes=1000)
    cache.put_many(_items(1))
    assert _known(cache, 1) == []


@pytest.mark.parametrize("through_close", [False, True])
def test_folder_drops_the_least_recently_used(
    new_cache: NewCache,
    clock: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    through_close: bool,
) -> None:
    if not through_close:
        monkeypatch.setattr(_embedding_cache, "_STAMP_GROUP", 1)
    cache = new_cache(max_bytes=2**20)
    cache.put_many(_items(*range(500)))
    clock(2)
    assert _known(cache, *range(50)) == list(range(50))
    if through_close:
        cache.close()
    clock(4)
    written = 500
    while cache.info()["entries"] == written:  # until the first ones leave
        cache.put_many(_items(*range(written, written + 100)))
        written += 100
    assert _known(cache, 50, 51) == []  # written later, but not used since
    assert _known(cache, *range(50)) == list(range(50))


def test_folder_notes_a_use_once_an_hour(
    new_cache: NewCache, clock: Callable[[int], None]
) -> None:
    cache = new_cache()
    cache.put_many(_items(*range(10)))

    def stamps() -> set[int]:
        cache.close()
        with sqlite3.connect(cache.path) as connection:
            rows = connection.execute("SELECT last_used FROM embedding").fetchall()
        connection.close()
        return {row[0] for row in rows}

    _known(cache, *range(10))
    assert stamps() == {10**9}
    clock(2)
    _known(cache, *range(10))
    assert stamps() == {10**9 + 7200}
    clock(1)  # the clock went back: a stamp in the future is put right
    _known(cache, *range(10))
    assert stamps() == {10**9 + 3600}


def test_folder_removed_while_open(new_cache: NewCache, tmp_path: Path) -> None:
    cache = new_cache()
    cache.put_many(_items(1))
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    assert _known(cache, 1) == []
    cache.put_many(_items(2))
    assert _known(cache, 1, 2) == [2]
    assert _known(new_cache(tmp_path / "elsewhere"), 1) == [1]


def _damage_rows(path: str, count: int) -> None:
    """Change the first byte of the numbers of some entries."""
    content = bytearray(Path(path).read_bytes())
    for number in range(count):
        position = content.index(_embedding(number).tobytes())
        content[position] ^= 1
    Path(path).write_bytes(content)


def test_damaged_entry_is_dropped_when_read(new_cache: NewCache) -> None:
    cache = new_cache()
    cache.put_many(_items(*range(100)))
    cache.close()
    _damage_rows(cache.path, 3)
    assert _known(cache, *range(100)) == list(range(3, 100))
    assert cache.verify() == {"entries": 97, "damaged": 0}
    cache.put_many(_items(0, 1, 2))
    assert _known(cache, *range(100)) == list(range(100))


def test_embedding_under_another_key_is_damage(new_cache: NewCache) -> None:
    cache = new_cache()
    cache.put_many(_items(1, 2))
    cache.close()
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute(
            "UPDATE embedding SET (value, checksum) = "
            "(SELECT value, checksum FROM embedding WHERE key = ?) WHERE key = ?",
            [_key(1).encode(), _key(2).encode()],
        )
    connection.close()
    assert _known(cache, 1, 2) == [1]


@pytest.mark.parametrize("column", ["key", "last_used", "checksum", "value"])
def test_column_of_another_type_is_damage(new_cache: NewCache, column: str) -> None:
    cache = new_cache()
    cache.put_many(_items(1, 2, 3))
    cache.close()
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute(
            f"UPDATE embedding SET {column} = CAST(x'ff' AS TEXT) WHERE key = ?",
            [_key(2).encode()],
        )
    connection.close()
    expected = [1, 2, 3] if column == "last_used" else [1, 3]
    assert _known(cache, 1, 2, 3) == expected
    cache.verify()
    assert cache.verify() == {"entries": len(expected), "damaged": 0}


def test_verify_drops_damaged_entries(new_cache: NewCache) -> None:
    cache = new_cache()
    cache.put_many(_items(*range(2500)))
    cache.close()
    _damage_rows(cache.path, 5)
    assert cache.verify() == {"entries": 2500, "damaged": 5}
    assert cache.verify() == {"entries": 2495, "damaged": 0}


def _cannot_be_used(cache: FolderCache, reason: str) -> None:
    """Check that the cache warns exactly once and then stays out of the way."""

    def use() -> None:
        for number in range(3):
            assert _known(cache, number) in ([], [number])
            cache.put_many(_items(number))

    with pytest.warns(UserWarning, match=reason) as caught:
        use()
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1
    assert cache.path in messages[0]
    assert "continues without this cache" in messages[0]
    assert caught[0].filename == __file__
    assert cache.get_many([_key(1)]) == {}


def test_text_file_in_its_place(new_cache: NewCache) -> None:
    cache = new_cache()
    os.makedirs(cache.folder)
    Path(cache.path).write_text("These are my notes.\n" * 1000)
    _cannot_be_used(cache, r"not a database.*move it away")
    for action in (cache.info, cache.verify, cache.clear):
        with pytest.raises(OSError, match="not a database"):
            action()
    assert Path(cache.path).read_text().startswith("These are my notes.")
    os.remove(cache.path)
    cache.clear()
    cache.put_many(_items(1))
    assert _known(cache, 1) == [1]


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6])
def test_truncated_file(new_cache: NewCache, kept: float) -> None:
    cache = new_cache()
    cache.put_many(_items(*range(2000)))
    cache.close()
    content = Path(cache.path).read_bytes()
    Path(cache.path).write_bytes(content[: int(len(content) * kept)])
    _cannot_be_used(cache, "cannot be used")
    with pytest.raises(OSError, match="cannot be used"):
        cache.verify()
    cache.clear()
    cache.put_many(_items(1))
    assert _known(cache, 1) == [1]


@pytest.mark.parametrize("seed", range(12))
def test_overwritten_bytes_never_give_a_wrong_embedding(
    new_cache: NewCache, seed: int
) -> None:
    cache = new_cache()
    cache.put_many(_items(*range(600)))
    cache.close()
    choose = random.Random(seed)
    content = bytearray(Path(cache.path).read_bytes())
    for _ in range(choose.choice([1, 20])):
        start, length = choose.randrange(len(content)), choose.choice([1, 50, 20000])
        length = min(length, len(content) - start)
        content[start : start + length] = choose.randbytes(length)
    Path(cache.path).write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _known(cache, *range(600))
        cache.put_many(_items(*range(600, 620)))
        _known(cache, *range(620))
    assert len(caught) <= 1
    if _embedding_cache._TABLE.encode() in content[: _embedding_cache._PAGE_SIZE]:
        cache.clear()
    else:  # nothing in it says that it is ours
        with pytest.raises(OSError, match="left as it is"):
            cache.clear()
        os.remove(cache.path)
        cache.clear()
    cache.put_many(_items(*range(600)))
    assert cache.verify() == {"entries": 600, "damaged": 0}


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE customers (name)",
        "CREATE TABLE embedding (id, vector); CREATE TABLE documents (text)",
        "CREATE TABLE embedding (key, last_used, checksum, value)",
        f"{_embedding_cache._SCHEMA}; CREATE TABLE notes (text)",
        "CREATE VIEW embedding AS SELECT 1 AS key",
    ],
)
def test_database_of_something_else(new_cache: NewCache, sql: str) -> None:
    cache = new_cache()
    os.makedirs(cache.folder)
    connection = sqlite3.connect(cache.path)
    connection.executescript(sql)
    connection.close()
    before = Path(cache.path).read_bytes()
    _cannot_be_used(cache, r"not a database of clipad.*move it away")
    for action in (cache.info, cache.verify, cache.clear):
        with pytest.raises(OSError, match="not a database of clipad"):
            action()
    assert Path(cache.path).read_bytes() == before
    assert os.listdir(cache.folder) == [os.path.basename(cache.path)]


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_no_file_in_its_place(new_cache: NewCache, kind: str, tmp_path: Path) -> None:
    cache, other = new_cache(), tmp_path / "other.sqlite"
    os.makedirs(cache.folder)
    if kind == "link":
        sqlite3.connect(other).close()
    if "link" in kind:
        os.symlink(other, cache.path)
    elif kind == "folder":
        os.makedirs(os.path.join(cache.path, "inside"))
    else:
        os.mkfifo(cache.path)
    _cannot_be_used(cache, "a link, a folder or a pipe.*choose another folder")
    with pytest.raises(OSError, match="a link, a folder or a pipe"):
        cache.clear()
    assert os.path.lexists(cache.path)
    assert other.exists() == (kind == "link")


def test_folder_that_cannot_be_made(new_cache: NewCache, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = new_cache(tmp_path / "file" / "cache")
    _cannot_be_used(cache, r"choose another folder")
    assert cache.info()["entries"] == 0


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_read_only_folder(new_cache: NewCache, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    _cannot_be_used(new_cache(), r"choose another folder")


def test_locked_file(new_cache: NewCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedding_cache, "_LOCK_SECONDS", 0.2)
    cache = new_cache()
    cache.put_many(_items(1))
    cache.close()
    connection = sqlite3.connect(cache.path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        _cannot_be_used(cache, r"locked.*wait for it")
        with pytest.raises(OSError, match="locked"):
            cache.clear()
    finally:
        connection.close()
    cache.clear()
    cache.put_many(_items(2))
    assert _known(cache, 1, 2) == [2]


def test_short_lock_is_waited_for(new_cache: NewCache) -> None:
    cache = new_cache()
    cache.put_many(_items(1))
    connection = sqlite3.connect(
        cache.path, isolation_level=None, check_same_thread=False
    )
    connection.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, lambda: connection.execute("ROLLBACK"))
    timer.start()
    cache.put_many(_items(2))
    timer.join()
    connection.close()
    assert _known(cache, 1, 2) == [1, 2]


def test_one_warning_whatever_the_number_of_threads(
    new_cache: NewCache, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    cache = new_cache(tmp_path / "file" / "cache")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [
            threading.Thread(target=cache.put_many, args=[_items(number)])
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caught) == 1


FULL_DISK = """
import resource, sys, warnings
import numpy as np
from clipad_sklearn._clip.embedding_cache import FolderCache

resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
cache = FolderCache(sys.argv[1])
vectors = np.random.default_rng(0).normal(size=(2000, 640)).astype(np.float32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for start in range(0, 2000, 50):
        numbers = range(start, start + 50)
        cache.put_many({str(i): vectors[i] for i in numbers})
        hits = cache.get_many([str(i) for i in numbers])
        assert all((hits[key] == vectors[int(key)]).all() for key in hits)
assert len(caught) == 1, [str(warning.message) for warning in caught]
assert "Check the disk's space" in str(caught[0].message), caught[0].message
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_full_disk(new_cache: NewCache, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    subprocess.run([sys.executable, "-c", FULL_DISK, str(folder)], check=True)
    # What was written before is sound, and usable once there is space again.
    cache = new_cache(folder)
    counts = cache.verify()
    assert counts["entries"] > 0
    assert counts["damaged"] == 0
    cache.put_many(_items(1))
    assert _known(cache, 1) == [1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signal.setitimer")
def test_interrupted_put_stores_all_or_nothing(new_cache: NewCache) -> None:
    cache = new_cache()
    cache.put_many(_items(9999))
    choose = random.Random(0)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    stored = []
    try:
        for start in range(0, 5000, 100):
            items = _items(*range(start, start + 100))
            with contextlib.suppress(KeyboardInterrupt):
                # And once more a second, as a destructor may swallow the first.
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-4, 5e-3), 1)
                cache.put_many(items)
                while True:  # not signal.pause, which a signal just before it misses
                    time.sleep(1)
            signal.setitimer(signal.ITIMER_REAL, 0)
            stored.append(len(_known(cache, *range(start, start + 100))))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert set(stored) <= {0, 100}
    assert cache.verify() == {"entries": sum(stored) + 1, "damaged": 0}


def _write_and_read(folder: str, seed: int, rounds: Any, wrong: Any) -> None:
    """Use the cache until killed; count rounds, and wrong embeddings or failures."""
    warnings.simplefilter("error")
    cache = FolderCache(folder)
    choose = random.Random(seed)
    try:
        while True:
            numbers = choose.sample(range(400), 20)
            known = _known(cache, *numbers)
            again = [n for n in numbers if n not in known or choose.random() < 0.2]
            cache.put_many(_items(*again))
            rounds.value += 1
    except BaseException:
        wrong.value += 1
        raise


def test_processes_killed_at_any_moment(new_cache: NewCache) -> None:
    cache = new_cache()
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    fork = multiprocessing.get_context("fork")  # nothing is imported anew
    wrong = fork.RawValue("i", 0)
    choose = random.Random(0)

    def start(seed: int) -> tuple[Any, Any]:
        rounds = fork.RawValue("i", 0)
        process = fork.Process(
            target=_write_and_read, args=(cache.folder, seed, rounds, wrong)
        )
        process.start()
        return process, rounds

    workers = [start(seed) for seed in range(3)]
    try:
        for kill in range(6):
            index = kill % len(workers)
            process, rounds = workers[index]
            end = time.monotonic() + 300
            while rounds.value == 0 and process.is_alive():
                assert time.monotonic() < end
                time.sleep(0.01)  # only a process at work is worth killing
            time.sleep(choose.uniform(0, 0.1))
            assert process.is_alive()
            process.kill()
            process.join()
            _known(cache, *range(400))
            workers[index] = start(100 + kill)
    finally:
        for process, _ in workers:
            process.kill()
            process.join()
    assert wrong.value == 0
    counts = cache.verify()
    assert counts["damaged"] == 0
    assert len(_known(cache, *range(400))) == counts["entries"] > 0


@pytest.mark.parametrize("reason", ["locking protocol", "disk I/O error"])
def test_a_folder_that_cannot_lock(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on network folders: no long wait, and the advice that helps there."""

    def connect(*arguments: Any, **settings: Any) -> Any:
        raise sqlite3.OperationalError(reason)

    monkeypatch.setattr(_embedding_cache.sqlite3, "connect", connect)
    cache = FolderCache(tmp_path)
    start = time.monotonic()
    with pytest.warns(UserWarning, match="network folders: choose a local folder"):
        cache.put_many({"a": np.zeros(3, np.float32)})
    assert time.monotonic() - start < 5
    assert cache.get_many(["a"]) == {}
