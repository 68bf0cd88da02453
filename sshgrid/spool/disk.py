"""Private folders, durable names, and disk errors with a hint, for the queue and the spool.

Raises StoreError for folders and files that other users can write or read, for links in place of files, and for network
file systems, where neither locks nor shared memory are reliable.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sshgrid.errors import StoreError

MOUNTINFO = Path("/proc/self/mountinfo")

NETWORK = frozenset(
    """
    9p afs beegfs ceph cifs coda davfs fhgfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 ocfs2 orangefs smb3 smbfs
    fuse.ceph fuse.cephfs fuse.curlftpfs fuse.davfs2 fuse.glusterfs fuse.juicefs fuse.mfs fuse.moosefs fuse.rclone
    fuse.s3fs fuse.smbnetfs fuse.sshfs fuse.weed
    """.split()  # noqa: SIM905 - a list of 30 quoted words reads worse
)

_MESSAGES: dict[int, tuple[str, str]] = {
    errno.ENOSPC: (
        "no space left on its disk",
        "free some space (see `df -h -i`); `sshgrid rm` removes finished jobs and their output",
    ),
    errno.EDQUOT: (
        "your disk quota is used up",
        "free some space; `sshgrid rm` removes finished jobs and their output",
    ),
    errno.EFBIG: ("it would grow over the file size limit", "raise it: ulimit -f unlimited"),
    errno.EROFS: ("its file system is read-only", "choose another place: sshgrid master start --state-dir DIR"),
    errno.EACCES: ("permission denied", "check its owner and mode: ls -ld"),
    errno.EPERM: ("not permitted", "check its owner and mode: ls -ld"),
    errno.EMFILE: ("too many open files", "raise the limit: ulimit -n 4096"),
    errno.ENFILE: ("too many open files on this machine", ""),
    errno.EIO: ("the disk reports an error", "look at `dmesg`; restore from a backup if the disk is failing"),
}


@contextmanager
def blame_disk(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        words, hint = _MESSAGES.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StoreError(f"{path}: {words}", hint) from error


def private_directory(path: Path, forbidden: int = 0o022) -> None:
    """Create `path` with mode 0700, or check that it is a folder of this user without the `forbidden` mode bits."""
    with blame_disk(path):
        for missing in reversed([folder for folder in (path, *path.parents) if not folder.exists()]):
            with suppress(FileExistsError):  # two processes may start at the same time
                missing.mkdir(mode=0o700)
                missing.chmod(0o700)  # whatever the umask is
        found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{path}: not a directory", "choose another place: sshgrid master start --state-dir DIR")
    _check_owner(path, found, forbidden, "700")
    if not os.access(path, os.W_OK | os.X_OK):
        raise StoreError(f"{path}: not writable", f"chmod 700 {path}")


def check_private_file(path: Path) -> None:
    """Check that `path` is a plain file of this user that other users can neither read nor write."""
    with blame_disk(path):
        found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path}: not a plain file", "move it away")
    _check_owner(path, found, 0o077, "600")


def _check_owner(path: Path, found: os.stat_result, forbidden: int, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise StoreError(f"{path}: belongs to another user (uid {found.st_uid})", "run sshgrid as its owner")
    if found.st_mode & forbidden:
        can = "written" if found.st_mode & forbidden & 0o022 else "read"
        raise StoreError(f"{path}: can be {can} by others (mode {found.st_mode & 0o777:o})", f"chmod {mode} {path}")


def refuse_network(path: Path) -> None:
    """Raise StoreError when `path` is on a network file system. Does nothing where there is no mountinfo."""
    try:
        mounts = MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    kind = filesystem_of(mounts, os.path.realpath(path))
    if kind in NETWORK:
        raise StoreError(
            f"{path}: is on a network file system ({kind}), where a queue can be damaged",
            "choose a local disk: sshgrid master start --state-dir DIR",
        )


def filesystem_of(mountinfo: str, path: str) -> str:
    """Return the type of the file system of an absolute path, "" when not found. Format: proc_pid_mountinfo(5)."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        fields = left.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]).rstrip("/")
        # A later mount on the same point hides the earlier one, hence >=.
        if (path == point or path.startswith(point + "/")) and len(point) >= best:
            best, kind = len(point), right.split(" ")[0]
    return kind


def create_temporary(directory: Path, prefix: str) -> tuple[int, Path]:
    """Create a private file (0600) under a random name, and return its descriptor and path.

    Write it, then give it its name by `publish` or `replace`.
    """
    descriptor, name = tempfile.mkstemp(prefix=prefix, dir=directory)
    os.fchmod(descriptor, 0o600)
    return descriptor, Path(name)


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished file durably. Raises FileExistsError when the name exists."""
    sync(temporary)
    os.link(temporary, path, follow_symlinks=False)
    temporary.unlink()
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring the bytes of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(path: Path) -> None:
    """Bring everything that was written to the file system of this path to disk: see syncfs(2)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def write_all(descriptor: int, piece: bytes) -> None:
    """Write all of `piece`, with as many system calls as needed."""
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
