"""The disk cache of compiled programs: one verified directory for each key, no locks, no pickle.

An entry is written in a private directory and appears by one rename, so readers never see a part
of it and any process may be killed at any time. `meta.json` holds a digest of every file, which
is checked before a file is used; whatever looks wrong is a miss, is rebuilt, and warns once.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyc import config
from tinyc.diagnostics import warn_once

# Part of every key: raise it when the meaning of what is stored changes.
CACHE_VERSION = 1
CAP_BYTES = 1 << 30
META = "meta.json"
# Puts between two looks at the size of the whole cache, which other processes fill too.
PUTS_PER_SCAN = 64

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass
class CacheStats:
    """What happened in this process: found, not found, and given to a compiler."""

    hits: int = 0
    misses: int = 0
    compiles: int = 0


def make_key(*parts: str) -> str:
    """Return the key of what the parts determine; no two lists of parts are mistaken."""
    digest = hashlib.sha256(b"tinyc cache %d" % CACHE_VERSION)
    for part in parts:
        data = part.encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


class DiskCache:
    """Files by key below `root`, a directory that nobody else can write.

    Never raises for the state of the disk: a damaged entry is a miss, and a folder that can't be
    trusted or written is replaced by a temporary one of this process.
    """

    def __init__(self, root: Path, cap_bytes: int = CAP_BYTES) -> None:
        self.root = usable_root(root)
        self.cap_bytes = cap_bytes
        self.stats = CacheStats()
        self._puts = 0
        self._size = 0
        self._sweep()

    def get(self, key: str) -> Path | None:
        """Return the directory of a key's verified files, or None."""
        entry = self.root / key
        problem = entry_problem(entry, key)
        if problem is None:
            self.stats.hits += 1
            with contextlib.suppress(OSError):
                os.utime(entry)  # eviction removes what was used longest ago
            return entry
        self.stats.misses += 1
        if problem:
            warn_once("cache entry", f"rebuilding a damaged entry of the cache: {entry}: {problem}")
            self.discard(key)
        return None

    def put(self, key: str, files: Mapping[str, bytes]) -> Path:
        """Store files under a key and return their directory; an entry that is there is kept."""
        with self.workspace() as work:
            for name, data in files.items():
                (work / name).write_bytes(data)
            return self.publish(key, work, list(files))

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private directory on the cache's disk, removed at the end unless it was published."""
        work, handle = self._make_workspace()
        owner = os.getpid()
        try:
            yield work
        finally:
            if owner == os.getpid():  # not in a child that was forked meanwhile
                shutil.rmtree(work, ignore_errors=True)
            os.close(handle)

    def publish(self, key: str, work: Path, names: list[str]) -> Path:
        """Make the named files of a workspace the entry of `key` and return its directory.

        A valid entry that another process published meanwhile is kept.
        """
        files = {name: describe_file(work / name) for name in names}
        for extra in set(os.listdir(work)) - set(names):
            remove(work / extra)
        text = json.dumps({"key": key, "files": files}, sort_keys=True)
        (work / META).write_text(text)
        entry = self.root / key
        for _ in range(8):
            try:
                os.rename(work, entry)
            except OSError:
                if entry_problem(entry, key) is None:
                    return entry
                self.discard(key)
            else:
                self._grow(sum(size for _, size in files.values()))
                return entry
        raise OSError(f"{entry} can't be written")

    def discard(self, key: str) -> None:
        """Remove an entry, whatever it is; no reader sees a part of it go."""
        grave = self._temporary() / f"gone-{os.getpid()}-{os.urandom(6).hex()}"
        with contextlib.suppress(OSError):
            os.rename(self.root / key, grave)
        remove(grave)

    def entries(self) -> list[tuple[float, int, str]]:
        """Return (time of last use, bytes, key) of every entry."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.root) as scan:
            for item in scan:
                if _KEY.fullmatch(item.name):
                    with contextlib.suppress(OSError):
                        used = item.stat(follow_symlinks=False).st_mtime
                        found.append((used, directory_bytes(item.path), item.name))
        return found

    def summary(self) -> dict[str, int | str]:
        """Return root, entries and bytes, and the counters of this process."""
        entries = self.entries()
        total = sum(size for _, size, _ in entries)
        counters = vars(self.stats)
        return {"root": str(self.root), "entries": len(entries), "bytes": total, **counters}

    def clear(self) -> None:
        """Remove every entry."""
        for _, _, key in self.entries():
            self.discard(key)

    def evict(self) -> None:
        """Bring the cache below three quarters of its cap, oldest use first."""
        entries = sorted(self.entries())
        self._size = sum(size for _, size, _ in entries)
        if self._size <= self.cap_bytes:
            return
        for _, size, key in entries:
            if self._size <= self.cap_bytes * 3 // 4:
                break
            self.discard(key)
            self._size -= size

    def _grow(self, size: int) -> None:
        self._size += size
        if self._puts % PUTS_PER_SCAN == 0 or self._size > self.cap_bytes:
            self.evict()
        self._puts += 1

    def _temporary(self) -> Path:
        path = self.root / "tmp"
        with contextlib.suppress(OSError):
            path.mkdir(mode=0o700, exist_ok=True)
        return path

    def _make_workspace(self) -> tuple[Path, int]:
        """Make a directory and hold a lock on it, by which others know its owner is alive."""
        for _ in range(100):
            try:
                work = tempfile.mkdtemp(prefix="new-", dir=self._temporary())
            except OSError as error:
                self.fall_back(error)
                continue
            try:
                handle = os.open(work, os.O_RDONLY)
            except OSError:
                continue  # taken by the sweep of another process before it was locked
            with contextlib.suppress(OSError):  # not every file system has locks
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    continue
            return Path(work), handle
        raise OSError(f"no temporary directory can be made in {self.root}")

    def fall_back(self, error: OSError) -> None:
        """Go on in a private folder after the disk refused; a second refusal is raised."""
        if self.root == private_root():
            raise error
        warn_once("cache root", f"compiled programs are not kept: {error}")
        self.root = private_root()

    def _sweep(self) -> None:
        """Remove what killed processes have left: workspaces that nobody holds a lock on."""
        temporary = self.root / "tmp"
        with contextlib.suppress(OSError), os.scandir(temporary) as scan:
            for item in scan:
                with contextlib.suppress(OSError):
                    handle = os.open(item.path, os.O_RDONLY)
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        remove(Path(item.path))
                    finally:
                        os.close(handle)


def entry_problem(entry: Path, key: str) -> str | None:
    """Return None for a sound entry, "" where there is none, else what is wrong with it."""
    try:
        if not stat.S_ISDIR(os.lstat(entry).st_mode):
            return "not a directory"
    except OSError:
        return ""
    try:
        meta = json.loads((entry / META).read_bytes())
        if meta["key"] != key:
            return "the files of another key"
        for name, recorded in meta["files"].items():
            if os.path.basename(name) != name or list(describe_file(entry / name)) != recorded:
                return f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def describe_file(path: Path) -> tuple[str, int]:
    """Return (sha256, size) of a regular file."""
    if path.is_symlink():
        raise OSError(f"{path.name} is a link")
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), len(data)


def directory_bytes(path: str) -> int:
    """Return the bytes of the files in a directory (or of a file), 0 for what has gone."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(path) as scan:
        for item in scan:
            with contextlib.suppress(OSError):
                total += item.stat(follow_symlinks=False).st_size
    return total


def remove(path: Path) -> None:
    """Remove a file, a link or a tree; what can't be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


# Where the cache lies -----------------------------------------------------------------------


def configured_root() -> Path:
    """Return the folder that the user chose, or the usual one, which need not exist."""
    chosen = config.current().cache_dir
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "tinyc"
    return Path(os.path.expanduser("~")) / ".cache" / "tinyc"


def usable_root(root: Path) -> Path:
    """Return `root`, made where it was missing, or a private folder if it can't be trusted."""
    try:
        if not root.is_absolute() and str(root).startswith("~"):
            raise OSError("there is no home folder; TINYC_CACHE_DIR may name another")
        root = Path(os.path.abspath(root))
        make_private(root)
        problem = trust_problem(root)
        if problem:
            raise OSError(f"{root} is not trusted: {problem}")
    except OSError as error:
        warn_once("cache root", f"compiled programs are not kept: {error}")
        return private_root()
    return root


def make_private(path: Path) -> None:
    """Make a directory and its missing parents for the user alone."""
    if not os.path.lexists(path):
        make_private(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)


def trust_problem(path: Path) -> str | None:
    """Say why others could put files below a directory: who owns it, who may write, its parents."""
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return "it is a link"
    if not stat.S_ISDIR(info.st_mode):
        return "it is not a directory"
    if info.st_uid != os.geteuid():
        return f"it belongs to user {info.st_uid}"
    if info.st_mode & 0o022:
        return f"others may write to it (mode {info.st_mode & 0o777:o})"
    for parent in Path(os.path.realpath(path)).parents:
        info = os.lstat(parent)
        if info.st_uid not in (0, os.geteuid()):
            return f"{parent} belongs to user {info.st_uid}"
        if info.st_mode & 0o002 and not info.st_mode & stat.S_ISVTX:
            return f"everybody may write to {parent}"
    return None


_private: tuple[int, Path] | None = None


def private_root() -> Path:
    """Return the temporary cache folder of this process, removed when it ends."""
    global _private
    if _private is None or _private[0] != os.getpid():
        path = Path(tempfile.mkdtemp(prefix="tinyc-"))
        _private = os.getpid(), path
        atexit.register(_remove_private, *_private)
    return _private[1]


def _remove_private(pid: int, path: Path) -> None:
    if pid == os.getpid():  # a forked child inherits the call, not the folder
        shutil.rmtree(path, ignore_errors=True)


_caches: dict[Path, DiskCache] = {}


def disk_cache() -> DiskCache:
    """Return the cache of the folder in force."""
    root = configured_root()
    cache = _caches.get(root)
    if cache is None:
        cache = _caches[root] = DiskCache(root)
    return cache
