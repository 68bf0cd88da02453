"""One host of the lab: a real OpenSSH server to cut, freeze, fill, reset and pull the plug of.

A host is a network namespace on the lab's own bridge with its own processes, /tmp, /home, accounts, load, boot id
and uptime; its /var/tmp is a disk that survives a power cut. Never touches a process that is not its own.
A plain user on a host cannot mount a fresh /proc (the kernel refuses where /proc/stat is covered), as in a container.
"""

from __future__ import annotations

import select
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab import machine
from tests.lab.disk import ACCOUNT, UID, HostDirectory
from tests.lab.load import Load
from tests.lab.machine import LabError, Process, wait_until
from tests.lab.network import Wire

BOOT = Path(__file__).with_name("boot.sh")
WORKDIR = f"/var/tmp/sshgrid-{UID}"
INFRASTRUCTURE = {"sshd", "sshd-session", "sshd-auth", "dropbear"}


class LabHost:
    """One machine of the lab. Every call returns when the host is in the new state."""

    kind = "openssh"

    def __init__(self, wire: Wire, directory: HostDirectory) -> None:
        self.name = wire.name
        self.address = wire.address
        self.workdir = WORKDIR
        self._wire = wire
        self._directory = directory
        self.load = Load(directory.path / "proc")
        self._log = directory.path / "log"
        self._hidden: tuple[str, ...] = ()
        self._own_uptime = machine.has_time_namespaces()
        self._boot: subprocess.Popen[bytes] | None = None
        self.init = 0
        self._server = 0
        self._server_wanted = True

    # --- power ------------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Boot: same disk, same host key, a new boot id, uptime from zero, empty /tmp and /home."""
        if self.is_on:
            return
        self._directory.new_boot()
        self._wire.lay()
        with self._log.open("ab") as log:
            self._boot = subprocess.Popen(
                self._boot_command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=machine.environment(),
                start_new_session=True,
            )
        self._answer()
        self.init = self._pid_below(self._boot.pid, 1)
        self.start_server()

    def power_off(self) -> None:
        """The plug is pulled: silence on the wire, then everything on the host is gone at once."""
        if self._boot is None:
            return
        self._wire.set_link(False)
        machine.signal_all([self.init], signal.SIGKILL)
        for pipe in (self._boot.stdin, self._boot.stdout):
            if pipe is not None:
                pipe.close()
        self._boot.wait(10)
        self._boot, self.init, self._server = None, 0, 0
        wait_until(lambda: not machine.in_network(self._wire.namespace_path), f"{self.name} to be dark", 5)
        self._wire.rip_out()

    def power_cycle(self) -> None:
        self.power_off()
        self.power_on()

    @property
    def is_on(self) -> bool:
        return self._boot is not None

    # --- wire and server --------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut the wire, silently: nothing is refused, nothing is answered."""
        self._wire.set_link(False)

    def reset_connections(self) -> None:
        """From now on the host answers every packet of a TCP connection to its server with a reset."""
        self._wire.filter("tcp dport 22 reject with tcp reset")

    def lose(self, percent: int) -> None:
        """From now on this share of the packets to the host is lost: 1 to 100 percent."""
        self._wire.filter(f"numgen random mod 100 <= {percent - 1} drop")

    def heal(self) -> None:
        """The wire is joined, nothing is lost or refused any more."""
        self._wire.filter("")
        self._wire.set_link(True)

    def reset_sessions(self) -> None:
        """Kill the server's session processes: every client sees its connection end; detached jobs live on."""
        killed = self._sessions()
        machine.signal_all(killed, signal.SIGKILL)
        wait_until(lambda: not any(map(machine.is_alive, killed)), f"no session on {self.name}", 5, self._sessions)

    def freeze_sessions(self) -> None:
        """SIGSTOP the server's session processes: connections that are there fall silent, new ones are greeted."""
        machine.signal_all(self._sessions(), signal.SIGSTOP)

    def stop_server(self) -> None:
        """Kill the listener only: sessions live on, new connections are refused."""
        self._server_wanted = False
        if self._serves():
            machine.signal_all([self._server], signal.SIGKILL)
            wait_until(lambda: not self._serves(), f"no SSH server on {self.name}", 5)

    def start_server(self) -> None:
        """Start the listener and wait until it greets."""
        self._server_wanted = True
        if not self._serves():
            self._server = self._pid_below(self.init, int(self._tell("server")))
        wait_until(self._greets, f"the SSH server of {self.name}", 10, self._log.read_text)

    def new_host_key(self) -> None:
        """The host comes back with another key than the one the lab's known_hosts has."""
        self.power_off()
        self._directory.new_host_key()
        self.power_on()

    # --- processes --------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """SIGSTOP everything; the kernel still accepts connections, and nobody answers."""
        wait_until(self._all_stopped, f"{self.name} to be frozen", 5)

    def thaw(self) -> None:
        machine.signal_all([*machine.descendants(self.init), self.init], signal.SIGCONT)

    def processes(self) -> list[Process]:
        """What runs here besides init and the SSH server; pids as the host sees them."""
        return [Process(machine.inner_pid(pid), machine.argv_of(pid)) for pid in self._users_pids()]

    def end_processes(self) -> None:
        """Kill every process and session of users."""
        self.reset_sessions()
        wait_until(self._all_killed, f"{self.name} to be empty", 5, self.processes)

    def run(
        self, argv: Sequence[str], *, user: str = "root", stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host without SSH, as root or as the account of the jobs."""
        if not self.is_on:
            raise LabError(f"{self.name} is off")
        enter = ["nsenter", f"--target={self.init}", "--mount", "--pid", "--uts", "--ipc", "--net", "--wd=/"]
        if self._own_uptime:
            enter.append("--time")
        if user == ACCOUNT:
            enter += [f"--setuid={UID}", f"--setgid={UID}"]
        command = [*enter, "--", *argv]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, env=machine.environment()
        )
        if check and done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    # --- what the host is like ----------------------------------------------------------------------------------------

    def set_load(self, load1: float, busy_cores: float) -> None:
        """What /proc/loadavg and /proc/stat say from now on."""
        self.load.set(load1, busy_cores)

    def set_shell(self, name: str) -> None:
        """The login shell of the account: bash sh dash csh fish mksh nologin, or a path."""
        self._directory.shell(name)

    def set_bashrc(self, text: str) -> None:
        """What ~/.bashrc says, now and after a reboot (bash reads it for every command over SSH)."""
        self._directory.bashrc(text)
        if self.is_on:
            home = f"/home/{ACCOUNT}/.bashrc"
            self.run(["sh", "-c", f"cat >{home}"], stdin=text)

    def take_passwords(self, password: str, port: int) -> None:
        """A second SSH server on this port, which takes the account's password as well, until the power goes."""
        self._directory.password(password)
        options = [f"-o{word}=yes" for word in ("PasswordAuthentication", "KbdInteractiveAuthentication")]
        key = str(self._directory.path / "host_key")
        self.run(["/usr/sbin/sshd", "-f", "/dev/null", "-h", key, "-p", str(port), "-oPidFile=none", *options])

    def hide(self, *tools: str) -> None:
        """Take names out of this host's /usr/bin and /usr/local/bin, until the next reset()."""
        self._hidden += tools
        self._directory.hidden(self._hidden)
        if self.is_on:
            self._tell("hide")

    def small_disk(self, size_bytes: int) -> None:
        """Reboot with an empty /var/tmp of this size, until the next reset()."""
        self.power_off()
        self._directory.shrink(size_bytes)
        self.power_on()

    def fill_disk(self, leave_bytes: int = 0) -> None:
        """Fill a small disk to the last byte, or but for `leave_bytes`."""
        self._directory.fill(leave_bytes)

    def free_disk(self) -> None:
        self._directory.free()

    def leftovers(self, workdir: str = WORKDIR) -> list[str]:
        """Names of the run directories on the disk; works while the host is off, too."""
        runs = self._directory.disk / Path(workdir).relative_to("/var/tmp") / "runs"
        return sorted(entry.name for entry in runs.iterdir()) if runs.is_dir() else []

    def disk_path(self, path: str) -> Path:
        """Where the lab's machine sees a file of the host's /var/tmp."""
        return self._directory.disk / Path(path).relative_to("/var/tmp")

    @property
    def known_host(self) -> str:
        return f"{self.address} {self._directory.host_key}"

    # --- between tests ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """A first day again: rebooted, healed, idle, empty disk, bash, every tool there."""
        self.power_off()
        self._directory.unshrink()
        self._directory.wipe()
        self._hidden = ()
        self._directory.defaults()
        self.load.set(0.0, 0.0)
        self.power_on()

    def end(self) -> None:
        """Off, and nothing mounted any more."""
        self.power_off()
        self._directory.unshrink()

    def check_quiet(self, seconds: float = 10.0) -> None:
        """LabError when a process was left on the host, or when its init or server died unasked."""
        if self._boot is None:
            return
        self.thaw()
        self.heal()
        if self._boot.poll() is not None or (self._server_wanted and not self._serves()):
            raise LabError(f"{self.name}: the host or its SSH server died unasked: {self._log.read_text()[-2000:]}")
        # Whoever was cut off from a session is not told that it ended; close them, then look.
        self.reset_sessions()
        wait_until(lambda: not self.processes(), f"no process left on {self.name}", seconds, self.processes)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _boot_command(self) -> list[str]:
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]
        if self._own_uptime:
            # Uptime and process start times begin at zero again, as on a machine that was just switched on.
            unshare += ["--time", "--boottime", str(-int(machine.uptime()))]
        script = ["bash", str(BOOT), self.kind, self.name, str(self._directory.path), str(UID)]
        return ["nsenter", f"--net={self._wire.namespace_path}", *unshare, *script]

    def _tell(self, word: str) -> str:
        """Say a word to the first process and give what it answers after `ok`."""
        if self._boot is None or self._boot.stdin is None:
            raise LabError(f"{self.name} is off")
        self._boot.stdin.write(f"{word}\n".encode())
        self._boot.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        if self._boot is None or self._boot.stdout is None:
            raise LabError(f"{self.name} is off")
        ready, _, _ = select.select([self._boot.stdout], [], [], 10)
        line = self._boot.stdout.readline().decode() if ready else ""
        if not line.startswith("ok"):
            raise LabError(f"{self.name} does not answer: {line!r}; its log: {self._log.read_text()[-2000:]}")
        return line.removeprefix("ok").strip()

    def _greets(self) -> bool:
        try:
            with socket.create_connection((self.address, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _users_pids(self) -> list[int]:
        pids = machine.descendants(self.init) if self.is_on else []
        # A process without a program is on its way out.
        return [pid for pid in pids if machine.program_of(pid) not in {"", *INFRASTRUCTURE}]

    def _serves(self) -> bool:
        return machine.is_alive(self._server)

    def _sessions(self) -> list[int]:
        pids = machine.descendants(self.init) if self.is_on else []
        return [pid for pid in pids if machine.program_of(pid) in INFRASTRUCTURE and pid != self._server]

    def _pid_below(self, root: int, inner: int) -> int:
        """The machine's number of the process that the host knows as `inner`."""
        found = [pid for pid in machine.descendants(root) if machine.inner_pid(pid) == inner]
        if not found:
            raise LabError(f"{self.name}: process {inner} has died: {self._log.read_text()[-2000:]}")
        return found[0]

    def _all_stopped(self) -> bool:
        pids = [self.init, *machine.descendants(self.init)]
        machine.signal_all(pids, signal.SIGSTOP)
        # Looked at again: what was forked before its parent stopped must stop, too.
        return all(machine.state_of(pid) in "Tt" for pid in [*pids, *machine.descendants(self.init)])

    def _all_killed(self) -> bool:
        pids = self._users_pids()
        machine.signal_all(pids, signal.SIGKILL)
        return not pids


class BusyboxHost(LabHost):
    """Dropbear and busybox and nothing else: no bash, no SFTP, no procps."""

    kind = "dropbear"
