"""Caches of embeddings, in memory and in a folder."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import os
import sqlite3
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._files import is_plain_file
from .._fork import at_fork

Embedding: TypeAlias = NDArray[np.float32]
Result = TypeVar("Result")

# What one entry costs in memory beside its numbers: key, array object, table slot.
_ENTRY_BYTES = 300

# Name of the file in a folder. Another layout of the table needs another name.
_FILE_NAME = "embeddings-v1.sqlite"
# Several embeddings share a page; with sqlite's 4 KiB a page would hold only one.
_PAGE_SIZE = 16384
_LOG_PAGES = 256
# Keys in one query: every sqlite allows 999 variables.
_QUERY_KEYS = 900
# A use is noted only if the last one noted is older than this many seconds, and in
# groups of this many keys, so that reading seldom writes.
_STAMP_SECONDS = 3600
_STAMP_GROUP = 1000
# Seconds to wait for other processes before a folder is given up.
_LOCK_SECONDS = 30.0

# As sqlite keeps it in the file, by which a file is known to be ours.
_TABLE = """TABLE embedding (
    key BLOB NOT NULL UNIQUE,
    last_used INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    value BLOB NOT NULL
)"""
_SCHEMA = f"""
CREATE {_TABLE.replace("TABLE", "TABLE IF NOT EXISTS")};
CREATE INDEX IF NOT EXISTS embedding_by_use ON embedding (last_used);
"""
_OURS = {b"embedding", b"embedding_by_use", b"sqlite_autoindex_embedding_1"}


def open_cache(
    embedding_cache: str | os.PathLike[str] | None,
) -> EmbeddingCache | None:
    """Return the cache that ``OpenCLIP(embedding_cache=...)`` stands for.

    The same setting gives the same object throughout a process.
    """
    if embedding_cache is None:
        return None
    if isinstance(embedding_cache, str) and embedding_cache == "memory":
        return _memory_cache
    if not isinstance(embedding_cache, (str, os.PathLike)) or embedding_cache == "":
        raise ValueError(
            f"embedding_cache={embedding_cache!r}: expected 'memory', a folder or None."
        )
    path = os.path.abspath(os.path.expanduser(os.fspath(embedding_cache)))
    with _folder_lock:
        if path not in _folder_caches:
            _folder_caches[path] = FolderCache(path)
        return _folder_caches[path]


class MemoryCache:
    """Embeddings in memory; the least recently used leave first. Thread-safe.

    Parameters
    ----------
    max_bytes : int, default=512 * 2**20
        Bound on the memory of the entries, 300 bytes of overhead each included.
    """

    def __init__(self, max_bytes: int = 512 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, Embedding] = OrderedDict()
        self._bytes = 0

    def get_many(self, keys: Sequence[str]) -> dict[str, Embedding]:
        """Return the embeddings known, read-only."""
        hits = {}
        with _memory_lock:
            for key in keys:
                if key in self._entries:
                    self._entries.move_to_end(key)
                    hits[key] = self._entries[key]
        return hits

    def put_many(self, items: Mapping[str, Embedding]) -> None:
        """Store embeddings."""
        copies = {key: _checked(value).copy() for key, value in items.items()}
        with _memory_lock:
            for key, value in copies.items():
                # The arrays handed out are these: nobody may change them.
                value.setflags(write=False)
                old = self._entries.pop(key, None)
                self._bytes += value.nbytes + _ENTRY_BYTES
                if old is not None:
                    self._bytes -= old.nbytes + _ENTRY_BYTES
                self._entries[key] = value
                while self._bytes > self.max_bytes:
                    _, oldest = self._entries.popitem(last=False)
                    self._bytes -= oldest.nbytes + _ENTRY_BYTES

    def info(self) -> dict[str, Any]:
        """Return the numbers of entries and bytes, the bound, and no path."""
        with _memory_lock:
            return {
                "entries": len(self._entries),
                "bytes": self._bytes,
                "max_bytes": self.max_bytes,
                "path": None,
            }

    def clear(self) -> None:
        """Forget everything."""
        with _memory_lock:
            self._entries.clear()
            self._bytes = 0


class FolderCache:
    """Embeddings in one sqlite file, shared by processes.

    Each entry carries a checksum of its key and numbers, which is verified whenever
    it is read. Transactions make the file safe from processes killed at any moment.
    `get_many` and `put_many` never fail: when the file cannot be used (disk full,
    folder read-only, file damaged or locked for long), the process warns once and
    continues without this cache. `info`, `clear` and `verify` raise OSError instead.

    The least recently used entries are dropped first. A use is noted once an hour, so
    within an hour the order is that of writing. The bound holds for the file; its
    write-ahead log beside it, some MiB while processes write, goes when the last of
    them closes the file.

    Parameters
    ----------
    folder : str or PathLike
        Created at the first `put_many`. Local: sqlite does not support a file that
        several machines write to over a network.
    max_bytes : int, default=10 * 2**30
        Bound on the size of the file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], max_bytes: int = 10 * 2**30
    ) -> None:
        self.folder = os.path.abspath(os.fspath(folder))
        self.path = os.path.join(self.folder, _FILE_NAME)
        self.max_bytes = max_bytes
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._stale: set[bytes] = set()
        self._usable = True
        with _folder_lock:
            _all_folder_caches.add(self)

    def get_many(self, keys: Sequence[str]) -> dict[str, Embedding]:
        """Return the embeddings known, read-only. Damaged ones are dropped."""
        hits: dict[str, Embedding] = {}
        damaged: list[bytes] = []

        def read(connection: sqlite3.Connection) -> None:
            recent = range(_now() - _STAMP_SECONDS, _now() + 1)
            for group in _groups(list(keys), _QUERY_KEYS):
                wanted = {key.encode(): key for key in group}
                rows = connection.execute(
                    "SELECT key, last_used, checksum, value FROM embedding "
                    f"WHERE key IN ({','.join('?' * len(wanted))})",
                    list(wanted),
                ).fetchall()
                for key, last_used, checksum, value in rows:
                    if key not in wanted:
                        continue
                    if not _is_intact(key, checksum, value):
                        damaged.append(key)
                        continue
                    hits[wanted[key]] = np.frombuffer(value, "<f4").astype(
                        np.float32, copy=False
                    )
                    if last_used not in recent:
                        self._stale.add(key)

        with _folder_lock:
            # Looking something up creates no file.
            if not self._usable or not os.path.exists(self.path):
                return {}
            failure = self._attempt(read)
            if failure is None and damaged:
                failure = self._attempt(lambda c: _delete(c, damaged))
            if failure is None and len(self._stale) >= _STAMP_GROUP:
                failure = self._attempt(self._write_stamps)
        if failure is not None:
            self._warn(failure)
        return hits

    def put_many(self, items: Mapping[str, Embedding]) -> None:
        """Store embeddings in one transaction; as many as fit within the bound."""
        now = _now()
        rows: list[tuple[bytes, int, bytes, bytes]] = []
        for name, array in items.items():
            key, value = name.encode(), _checked(array).astype("<f4").tobytes()
            rows.append((key, now, _checksum(key, value), value))

        def write(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                fitting = self._make_room(connection, rows)
                connection.executemany(
                    "INSERT OR REPLACE INTO embedding (key, last_used, checksum, value)"
                    " VALUES (?, ?, ?, ?)",
                    fitting,
                )
            if _pragma(connection, "page_count") * _PAGE_SIZE > self.max_bytes:
                # The bound was once higher: give free pages back to the disk.
                connection.executescript("PRAGMA incremental_vacuum")
            if _size(self.path + "-wal") > 4 * _LOG_PAGES * _PAGE_SIZE:
                # There was always somebody reading: wait a little for a gap.
                connection.execute("PRAGMA busy_timeout = 500")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                connection.execute(f"PRAGMA busy_timeout = {_LOCK_SECONDS * 1000:.0f}")

        with _folder_lock:
            if not self._usable or not rows:
                return
            failure = self._attempt(write)
        if failure is not None:
            self._warn(failure)

    def info(self) -> dict[str, Any]:
        """Return the numbers of entries and bytes, the bound, and the path.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        entries = 0
        if os.path.exists(self.path):
            entries = self._insist(
                lambda c: int(c.execute("SELECT count(*) FROM embedding").fetchone()[0])
            )
        return {
            "entries": entries,
            "bytes": sum(_size(self.path + end) for end in ("", "-wal", "-shm")),
            "max_bytes": self.max_bytes,
            "path": self.path,
        }

    def clear(self) -> None:
        """Forget everything, and use the folder again if it was given up.

        Raises
        ------
        OSError
            If the file is locked, can neither be emptied nor deleted, or is of
            something else.
        """

        def empty(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                connection.execute("DROP TABLE embedding")
            connection.executescript(_SCHEMA)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

        with _folder_lock:
            self._stale.clear()
            if os.path.lexists(self.path):
                failure = self._attempt(empty)
                if failure is not None:
                    if _is_locked(failure) or not self._is_ours(failure):
                        raise self._error(failure) from failure
                    for end in ("", "-wal", "-shm"):
                        with contextlib.suppress(FileNotFoundError):
                            os.remove(self.path + end)
            self._usable = True

    def verify(self) -> dict[str, int]:
        """Check the file's structure and every checksum, and drop damaged entries.

        Returns
        -------
        dict
            ``"entries"`` checked and how many of them were ``"damaged"``.

        Raises
        ------
        OSError
            If the file itself is damaged or cannot be used; `clear` starts afresh.
        """

        def check(connection: sqlite3.Connection) -> dict[str, int]:
            if _problem(connection):
                connection.execute("REINDEX")  # mends an index, which is all we can
            if problem := _problem(connection):
                raise sqlite3.DatabaseError(f"malformed: {problem}")
            entries = damaged = position = 0
            # In parts, so that no long read keeps the log from being emptied.
            while part := connection.execute(
                "SELECT rowid, key, checksum, value FROM embedding "
                "WHERE rowid > ? ORDER BY rowid LIMIT 1000",
                [position],
            ).fetchall():
                position = part[-1][0]
                entries += len(part)
                bad = [row[:1] for row in part if not _is_intact(*row[1:])]
                if bad:
                    with _transaction(connection):
                        connection.executemany(
                            "DELETE FROM embedding WHERE rowid = ?", bad
                        )
                damaged += len(bad)
            return {"entries": entries, "damaged": damaged}

        if not os.path.exists(self.path):
            return {"entries": 0, "damaged": 0}
        return self._insist(check)

    def close(self) -> None:
        """Write what is pending and close the file; the next use opens it again."""
        with _folder_lock:
            connection, self._connection = self._connection, None
            if connection is None:
                return
            with contextlib.suppress(sqlite3.Error), contextlib.closing(connection):
                # Stamps are not worth waiting for at the end of a process.
                connection.execute("PRAGMA busy_timeout = 0")
                self._write_stamps(connection)

    def _make_room(
        self,
        connection: sqlite3.Connection,
        rows: list[tuple[bytes, int, bytes, bytes]],
    ) -> list[tuple[bytes, int, bytes, bytes]]:
        """Drop the least recently used entries; return the rows that may be written.

        sqlite's page counts give the size at once, however many entries there are.
        """
        pages = self.max_bytes // _PAGE_SIZE - 8  # the empty file has a few
        # Twice the bare need: pages are never quite full.
        bytes_each = [2 * (len(row[0]) + len(row[3]) + 100) for row in rows]
        running = itertools.accumulate(bytes_each)
        fitting = sum(1 for total in running if total <= pages * _PAGE_SIZE)
        needed = -(-sum(bytes_each[:fitting]) // _PAGE_SIZE)
        # Never all at once, so that an estimate too high does not empty the cache.
        while fitting and _used_pages(connection) + needed > pages:
            excess = _used_pages(connection) + needed - pages + pages // 50
            limit = max(1, excess * _PAGE_SIZE // max(bytes_each[:fitting]))
            deleted = connection.execute(
                "DELETE FROM embedding WHERE rowid IN (SELECT rowid FROM embedding "
                "ORDER BY last_used, rowid LIMIT ?)",
                [limit],
            ).rowcount
            if not deleted:
                break
        return rows[:fitting]

    def _write_stamps(self, connection: sqlite3.Connection) -> None:
        stale, self._stale = self._stale, set()
        if not stale:
            return
        now = _now()
        with _transaction(connection):
            connection.executemany(
                "UPDATE embedding SET last_used = ? WHERE key = ?",
                [(now, key) for key in stale],
            )

    def _attempt(self, action: Callable[[sqlite3.Connection], Any]) -> Exception | None:
        """Run an action; on failure give the folder up and return the reason."""
        try:
            self._run(action)
        except (sqlite3.Error, OSError) as error:
            self._usable = False
            self.close()
            return error
        return None

    def _insist(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run an action, failing with OSError."""
        try:
            with _folder_lock:
                return self._run(action)
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise self._error(error) from error

    def _run(self, action: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run an action on the file, waiting while other processes keep it busy."""
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return action(self._open())
            except sqlite3.OperationalError as error:
                # sqlite itself waits, but not where that might be a deadlock.
                if not _is_locked(error) or time.monotonic() > end:
                    raise
            finally:
                # Also after Ctrl-C at any moment.
                if self._connection is not None:
                    self._connection.rollback()
            self.close()
            time.sleep(0.02)

    def _open(self) -> sqlite3.Connection:
        """Return the connection of this process to the file."""
        if self._connection is not None and self._inode != _inode(self.path):
            self.close()  # somebody removed or replaced the file
        if self._connection is None:
            os.makedirs(self.folder, exist_ok=True)
            if os.path.lexists(self.path) and not is_plain_file(self.path):
                raise OSError("it is a link, a folder or a pipe, and not a file")
            connection = sqlite3.connect(
                self.path,
                timeout=_LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            # Damage may turn any column into text that is none.
            connection.text_factory = bytes
            try:
                _check_ours(connection)
                connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
                connection.execute(
                    f"PRAGMA journal_size_limit = {_LOG_PAGES * _PAGE_SIZE}"
                )
                # Safe when processes are killed; a power cut may lose the last writes.
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
            except BaseException:
                connection.close()
                raise
            self._connection, self._inode = connection, _inode(self.path)
        return self._connection

    def _is_ours(self, failure: Exception) -> bool:
        """Whether the file that failed, however damaged, holds what is ours only."""
        if isinstance(failure, _NotOursError) or not is_plain_file(self.path):
            return False
        try:
            with open(self.path, "rb") as file:
                return _TABLE.encode() in file.read(_PAGE_SIZE)
        except OSError:
            return False

    def _error(self, reason: Exception) -> OSError:
        advice = "Check the disk's space and permissions, or choose another folder."
        if _is_locked(reason):
            advice = "Another process keeps it locked: wait for it, or stop it."
        elif _cannot_lock(reason):
            advice = (
                "Check the disk's space; on network folders: choose a local folder."
            )
        elif _is_damage(reason) and not self._is_ours(reason):
            advice = "It is left as it is: move it away, or choose another folder."
        elif _is_damage(reason):
            advice = "Delete the file or run 'clipad cache clear' to start afresh."
        return OSError(
            f"The embedding cache {self.path} cannot be used: {reason}. {advice}"
        )

    def _warn(self, reason: Exception) -> None:
        warnings.warn(
            f"{self._error(reason)} This process continues without this cache: "
            "results are the same, but everything is encoded again.",
            UserWarning,
            stacklevel=3,
        )


class _NotOursError(sqlite3.DatabaseError):
    """The database is of something else."""


def _check_ours(connection: sqlite3.Connection) -> None:
    """Raise an error if the database holds what is not ours; it changes nothing."""
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
    table = found.get(b"embedding", f"CREATE {_TABLE}".encode())
    if not found.keys() <= _OURS or table != f"CREATE {_TABLE}".encode():
        raise _NotOursError("not a database of clipad")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing; `FolderCache._run` undoes what was not committed."""
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("COMMIT")


def _delete(connection: sqlite3.Connection, keys: Sequence[bytes]) -> None:
    with _transaction(connection):
        connection.executemany(
            "DELETE FROM embedding WHERE key = ?", [(key,) for key in keys]
        )


def _checked(value: Any) -> Embedding:
    array = np.asarray(value, dtype=np.float32)
    if array.ndim != 1:
        raise ValueError(f"an embedding has one dimension, got shape {array.shape}")
    return array


def _checksum(key: bytes, value: bytes) -> bytes:
    salt = hashlib.blake2b(key, digest_size=16).digest()
    return hashlib.blake2b(value, digest_size=16, salt=salt).digest()


def _is_intact(key: Any, checksum: Any, value: Any) -> bool:
    if not isinstance(key, bytes) or not isinstance(value, bytes):
        return False  # damage can change the type of a column
    return checksum == _checksum(key, value)


def _groups(keys: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _problem(connection: sqlite3.Connection) -> str:
    """Return the first error in the file's structure, or nothing."""
    answer = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return "" if answer == b"ok" else answer.decode(errors="replace")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _used_pages(connection: sqlite3.Connection) -> int:
    return _pragma(connection, "page_count") - _pragma(connection, "freelist_count")


def _is_locked(error: Exception) -> bool:
    # Python 3.10 does not expose sqlite's error codes.
    return isinstance(error, sqlite3.OperationalError) and (
        "lock" in str(error) and not _cannot_lock(error)
    )


def _cannot_lock(error: Exception) -> bool:
    """Whether the file system has no locks that work, as on network folders."""
    return isinstance(error, sqlite3.OperationalError) and any(
        words in str(error) for words in ("locking protocol", "disk I/O error")
    )


def _is_damage(error: Exception) -> bool:
    """Whether the file is damaged, not merely out of reach or read-only."""
    return isinstance(error, sqlite3.DatabaseError) and any(
        words in str(error)
        for words in ("malformed", "not a data", "unsupported", "no such", "no column")
    )


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _now() -> int:
    return int(time.time())


EmbeddingCache: TypeAlias = MemoryCache | FolderCache

# One lock for each kind of cache, so that a fork can wait for both.
_memory_lock = threading.RLock()
_folder_lock = threading.RLock()
_memory_cache = MemoryCache()
_folder_caches: dict[str, FolderCache] = {}
_all_folder_caches: weakref.WeakSet[FolderCache] = weakref.WeakSet()


def _close_all() -> None:
    for cache in list(_all_folder_caches):
        cache.close()


def _before_fork() -> None:
    # A child must inherit neither a held lock nor an open file: sqlite does not
    # survive a fork.
    _memory_lock.acquire()
    _folder_lock.acquire()
    _close_all()


def _after_fork() -> None:
    _folder_lock.release()
    _memory_lock.release()


at_fork(before=_before_fork, in_parent=_after_fork, in_child=_after_fork)
atexit.register(_close_all)
