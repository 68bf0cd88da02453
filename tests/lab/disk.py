"""The files of a host: its keys, accounts, shell start-up file, its /var/tmp, and the busybox system.

They are in one directory per host that only root can enter; boot.sh mounts them at their places. They survive a
power-off. The hosts of a lab share a read-only copy of the machine's /etc, so that a change of the machine's
accounts does not affect them.
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from tests.lab.machine import LabError, call

ACCOUNT = "grid"
UID = 2001
SHELLS = {
    "bash": "/bin/bash",
    "sh": "/bin/sh",
    "dash": "/bin/dash",
    "csh": "/bin/csh",
    "fish": "/usr/bin/fish",
    "mksh": "/bin/mksh",
    "nologin": "/usr/sbin/nologin",
}
# Accounts come only from these files: a directory service of the machine may have one of the same name or number.
NAME_SERVICES = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"
SECRETS = ("shadow*", "gshadow*", "ssh_host_*", ".pwd.lock")


def copy_etc(target: Path) -> None:
    """Copy the machine's /etc without its secrets. LabError names each file that cannot be copied."""
    try:
        shutil.copytree("/etc", target, symlinks=True, ignore=shutil.ignore_patterns(*SECRETS))
    except shutil.Error as error:
        # A file that no longer exists was a temporary one of a package installation.
        if failed := [why for source, _, why in error.args[0] if os.path.lexists(source)]:
            raise LabError(f"cannot copy /etc: {'; '.join(failed)}") from error
    (target / "nsswitch.conf").write_text(NAME_SERVICES)
    for name in ("passwd", "group", "shadow", "hostname", "hosts"):
        (target / name).touch()


class HostDirectory:
    """The files of one host. `shell` takes the names in SHELLS. The copy of /etc is beside `path`."""

    def __init__(self, path: Path, name: str, authorized_key: str) -> None:
        self.path = path
        self._name = name
        self.disk = path / "disk"
        self._etc = path.parent / "etc"
        self._small_disk = False
        for folder in (path, path / "etc", path / "proc", self.disk):
            folder.mkdir(mode=0o755)
        self.disk.chmod(0o1777)
        self._write("authorized_keys", authorized_key)
        self._write("etc/hostname", f"{name}\n")
        self._write("etc/hosts", f"127.0.0.1 localhost {name}\n")
        self._write("etc/group", _with_line(self._etc / "group", f"{ACCOUNT}:x:{UID}:"))
        self._shadow("*")
        self.new_host_key()
        self.defaults()

    def defaults(self) -> None:
        """Restore the initial state except for the keys."""
        self.shell("bash")
        self.bashrc("")
        self.hidden(())
        self.new_boot()

    def shell(self, name: str) -> None:
        shell = SHELLS.get(name, name)
        if not Path(shell).exists():
            raise LabError(f"{shell} is not on this machine (scripts/setup-test-host.sh installs it)")
        line = f"{ACCOUNT}:x:{UID}:{UID}::/home/{ACCOUNT}:{shell}"
        self._write("etc/passwd", _with_line(self._etc / "passwd", line))

    def bashrc(self, text: str) -> None:
        self._write("bashrc", text)

    def password(self, password: str) -> None:
        """Set the password of the account; the normal SSH server of the host accepts no passwords."""
        self._shadow(call("openssl", "passwd", "-6", password).strip())

    def hidden(self, tools: tuple[str, ...]) -> None:
        self._write("hidden", "".join(f"{tool}\n" for tool in tools))

    def new_boot(self) -> None:
        """Set a new boot ID, as a real boot does."""
        self._write("proc/boot_id", f"{uuid.uuid4()}\n")

    def new_host_key(self) -> None:
        key = self.path / "host_key"
        key.unlink(missing_ok=True)
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self._name, "-f", str(key))

    @property
    def host_key(self) -> str:
        """The public key, as in a line of known_hosts."""
        return " ".join((self.path / "host_key.pub").read_text().split()[:2])

    def wipe(self) -> None:
        """Empty the disk."""
        for entry in self.disk.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def shrink(self, size_bytes: int) -> None:
        """Put a small empty disk in place of the large one."""
        self.unshrink()
        call("mount", "-t", "tmpfs", "-o", f"mode=1777,size={size_bytes}", "tmpfs", str(self.disk))
        self._small_disk = True

    def unshrink(self) -> None:
        if self._small_disk:
            # Lazily: a host that is being powered off may still use it for a moment.
            call("umount", "-l", str(self.disk))
            self._small_disk = False

    def fill(self, leave_bytes: int) -> None:
        """Use all space of a small disk except `leave_bytes`."""
        if not self._small_disk:
            raise LabError(f"{self._name}: only a small disk can be filled: call small_disk() first")
        free = shutil.disk_usage(self.disk).free
        # Other processes write at the same time: the disk may be full before the file is complete.
        with suppress(OSError), (self.disk / ".ballast").open("wb", buffering=0) as ballast:
            ballast.write(b"\0" * max(free - leave_bytes, 0))

    def free(self) -> None:
        (self.disk / ".ballast").unlink(missing_ok=True)

    def _shadow(self, password_hash: str) -> None:
        self._write("etc/shadow", f"{ACCOUNT}:{password_hash}:19000:0:99999:7:::\n", mode=0o600)

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        # In place: these files are bind-mounted, and the host would not see a replaced one.
        path = self.path / name
        path.write_text(text)
        path.chmod(mode)


class BusyboxDirectory(HostDirectory):
    """A system with only busybox and dropbear: no other program, no bash, no SFTP server."""

    def defaults(self) -> None:
        super().defaults()
        if not (self.path / "root").exists():
            self._build_root()

    def shell(self, name: str) -> None:
        if name not in ("sh", "bash"):
            raise LabError(f"{self._name} has only busybox sh as a shell")
        lines = ("root:x:0:0::/root:/bin/sh", f"{ACCOUNT}:x:{UID}:{UID}::/home/{ACCOUNT}:/bin/sh")
        self._write("etc/passwd", "\n".join((*lines, "")))

    def new_host_key(self) -> None:
        super().new_host_key()
        target = self.path / "dropbear_key"
        target.unlink(missing_ok=True)
        call("dropbearconvert", "openssh", "dropbear", str(self.path / "host_key"), str(target))

    def _build_root(self) -> None:
        root = self.path / "root"
        for folder in ("bin", "sbin", "etc", "proc", "dev", "mnt", "tmp", "home", "root", "var/tmp", "usr/bin"):
            (root / folder).mkdir(parents=True)
        self._write("etc/shells", "/bin/sh\n")
        self._write("etc/group", f"root:x:0:\n{ACCOUNT}:x:{UID}:\n")
        self._write("etc/nsswitch.conf", NAME_SERVICES)
        _copy_program("busybox", root / "bin", root)
        _copy_program("dropbear", root / "sbin", root)
        for applet in call("busybox", "--list").split():
            link = root / "bin" / applet
            if applet != "busybox":
                link.symlink_to("busybox")


def _copy_program(name: str, folder: Path, root: Path) -> None:
    source = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if source is None:
        raise LabError(f"{name} is not on this machine (scripts/setup-test-host.sh installs it)")
    shutil.copy2(source, folder / name)
    for word in call("ldd", source).split():
        if word.startswith("/"):
            target = root / word.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(word, target)


def _with_line(known: Path, line: str) -> str:
    """The lines of `known` and `line`, without other accounts of the same name or number."""
    name, _, number, *_ = line.split(":")
    accounts = [account.split(":") for account in known.read_text().splitlines()]
    kept = [":".join(fields) for fields in accounts if fields[0] != name and fields[2:3] != [number]]
    return "\n".join((*kept, line, ""))
