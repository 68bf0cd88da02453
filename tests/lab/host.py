"""One host of the lab: a real OpenSSH server that tests can cut off, freeze, fill, reset and power off.

A host is a network namespace on the bridge of the lab with its own processes, /tmp, /home, accounts, load, boot ID and
uptime; its /var/tmp is a disk that survives a power failure. Signals are sent only to processes of the host. As in a
container, a user on a host cannot mount a new /proc (the kernel refuses it where /proc/stat is covered).
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
    """One host of the lab. Each method returns when the host is in the new state."""

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
        """Boot with the same disk and host key, a new boot ID, uptime 0, and an empty /tmp and /home."""
        if self.is_on:
            return
        self._directory.new_boot()
        self._wire.create()
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
        """Cut the network, then kill all processes of the host at once."""
        if self._boot is None:
            return
        self._wire.set_link(False)
        machine.signal_all([self.init], signal.SIGKILL)
        for pipe in (self._boot.stdin, self._boot.stdout):
            if pipe is not None:
                pipe.close()
        self._boot.wait(10)
        self._boot, self.init, self._server = None, 0, 0
        wait_until(lambda: not machine.in_network(self._wire.namespace_path), f"{self.name} to have no process", 5)
        self._wire.remove()

    def power_cycle(self) -> None:
        self.power_off()
        self.power_on()

    @property
    def is_on(self) -> bool:
        return self._boot is not None

    # --- network and server -----------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Cut the network: packets are dropped without an answer."""
        self._wire.set_link(False)

    def reset_connections(self) -> None:
        """Answer every packet of a TCP connection to the SSH server with a reset, until `heal`."""
        self._wire.filter("tcp dport 22 reject with tcp reset")

    def lose(self, percent: int) -> None:
        """Drop this share of the packets to the host, 1 to 100 percent, until `heal`."""
        self._wire.filter(f"numgen random mod 100 <= {percent - 1} drop")

    def heal(self) -> None:
        """End the effects of `cut`, `lose` and `reset_connections`."""
        self._wire.filter("")
        self._wire.set_link(True)

    def reset_sessions(self) -> None:
        """Kill the session processes of the SSH server: all connections end, detached jobs continue."""
        killed = self._sessions()
        machine.signal_all(killed, signal.SIGKILL)
        wait_until(lambda: not any(map(machine.is_alive, killed)), f"no session on {self.name}", 5, self._sessions)

    def freeze_sessions(self) -> None:
        """SIGSTOP the session processes of the SSH server: open connections fall silent, new ones work."""
        machine.signal_all(self._sessions(), signal.SIGSTOP)

    def stop_server(self) -> None:
        """Kill only the listener: sessions continue, new connections are refused."""
        self._server_wanted = False
        if self._server_is_alive():
            machine.signal_all([self._server], signal.SIGKILL)
            wait_until(lambda: not self._server_is_alive(), f"no SSH server on {self.name}", 5)

    def start_server(self) -> None:
        """Start the listener and wait until it sends its version."""
        self._server_wanted = True
        if not self._server_is_alive():
            self._server = self._pid_below(self.init, int(self._send("server")))
        wait_until(self._server_answers, f"the SSH server of {self.name}", 10, self._log.read_text)

    def new_host_key(self) -> None:
        """Reboot with another host key than the one in the known_hosts file of the lab."""
        self.power_off()
        self._directory.new_host_key()
        self.power_on()

    # --- processes --------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """SIGSTOP all processes; the kernel still accepts connections, but they get no answer."""
        wait_until(self._all_stopped, f"{self.name} to be frozen", 5)

    def thaw(self) -> None:
        machine.signal_all([*machine.descendants(self.init), self.init], signal.SIGCONT)

    def processes(self) -> list[Process]:
        """The processes of the host except init and the SSH server; pids as the host sees them."""
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

    # --- settings ----------------------------------------------------------------------------------------------------

    def set_load(self, load1: float, busy_cores: float) -> None:
        """Set what /proc/loadavg and /proc/stat show."""
        self.load.set(load1, busy_cores)

    def set_shell(self, name: str) -> None:
        """Set the login shell of the account: bash sh dash csh fish mksh nologin, or a path."""
        self._directory.shell(name)

    def set_bashrc(self, text: str) -> None:
        """Set ~/.bashrc, now and after a reboot (bash reads it for every command over SSH)."""
        self._directory.bashrc(text)
        if self.is_on:
            home = f"/home/{ACCOUNT}/.bashrc"
            self.run(["sh", "-c", f"cat >{home}"], stdin=text)

    def take_passwords(self, password: str, port: int) -> None:
        """Start a second SSH server on this port, which also accepts the password; it runs until the next power-off."""
        self._directory.password(password)
        options = [f"-o{word}=yes" for word in ("PasswordAuthentication", "KbdInteractiveAuthentication")]
        key = str(self._directory.path / "host_key")
        self.run(["/usr/sbin/sshd", "-f", "/dev/null", "-h", key, "-p", str(port), "-oPidFile=none", *options])

    def hide(self, *tools: str) -> None:
        """Remove these names from /usr/bin and /usr/local/bin of this host, until the next reset()."""
        self._hidden += tools
        self._directory.hidden(self._hidden)
        if self.is_on:
            self._send("hide")

    def small_disk(self, size_bytes: int) -> None:
        """Reboot with an empty /var/tmp of this size, until the next reset()."""
        self.power_off()
        self._directory.shrink(size_bytes)
        self.power_on()

    def fill_disk(self, leave_bytes: int = 0) -> None:
        """Fill a small disk except for `leave_bytes`."""
        self._directory.fill(leave_bytes)

    def free_disk(self) -> None:
        self._directory.free()

    def leftovers(self, workdir: str = WORKDIR) -> list[str]:
        """Names of the run folders on the disk; also works while the host is off."""
        runs = self._directory.disk / Path(workdir).relative_to("/var/tmp") / "runs"
        return sorted(entry.name for entry in runs.iterdir()) if runs.is_dir() else []

    def disk_path(self, path: str) -> Path:
        """The path on the machine of the lab of a file in /var/tmp of the host."""
        return self._directory.disk / Path(path).relative_to("/var/tmp")

    @property
    def known_host(self) -> str:
        return f"{self.address} {self._directory.host_key}"

    # --- between tests ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Return to the initial state: rebooted, network healed, idle, empty disk, bash, no tool hidden."""
        self.power_off()
        self._directory.unshrink()
        self._directory.wipe()
        self._hidden = ()
        self._directory.defaults()
        self.load.set(0.0, 0.0)
        self.power_on()

    def end(self) -> None:
        """Power off and unmount the small disk."""
        self.power_off()
        self._directory.unshrink()

    def check_quiet(self, seconds: float = 10.0) -> None:
        """LabError when a process was left on the host, or when its init or SSH server ended unexpectedly."""
        if self._boot is None:
            return
        self.thaw()
        self.heal()
        if self._boot.poll() is not None or (self._server_wanted and not self._server_is_alive()):
            raise LabError(
                f"{self.name}: the host or its SSH server ended unexpectedly: {self._log.read_text()[-2000:]}"
            )
        # sshd does not notice that a session was cut off: end all sessions, then check.
        self.reset_sessions()
        wait_until(lambda: not self.processes(), f"no process left on {self.name}", seconds, self.processes)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _boot_command(self) -> list[str]:
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]
        if self._own_uptime:
            # Uptime and process start times begin at zero, as on a machine that has just booted.
            unshare += ["--time", "--boottime", str(-int(machine.uptime()))]
        script = ["bash", str(BOOT), self.kind, self.name, str(self._directory.path), str(UID)]
        return ["nsenter", f"--net={self._wire.namespace_path}", *unshare, *script]

    def _send(self, word: str) -> str:
        """Send a word to the init process and return what it answers after `ok`."""
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

    def _server_answers(self) -> bool:
        try:
            with socket.create_connection((self.address, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _users_pids(self) -> list[int]:
        pids = machine.descendants(self.init) if self.is_on else []
        # A process without a program is about to end.
        return [pid for pid in pids if machine.program_of(pid) not in {"", *INFRASTRUCTURE}]

    def _server_is_alive(self) -> bool:
        return machine.is_alive(self._server)

    def _sessions(self) -> list[int]:
        pids = machine.descendants(self.init) if self.is_on else []
        return [pid for pid in pids if machine.program_of(pid) in INFRASTRUCTURE and pid != self._server]

    def _pid_below(self, root: int, inner: int) -> int:
        """The pid on the machine of the process whose pid on the host is `inner`."""
        found = [pid for pid in machine.descendants(root) if machine.inner_pid(pid) == inner]
        if not found:
            raise LabError(f"{self.name}: process {inner} has ended: {self._log.read_text()[-2000:]}")
        return found[0]

    def _all_stopped(self) -> bool:
        pids = [self.init, *machine.descendants(self.init)]
        machine.signal_all(pids, signal.SIGSTOP)
        # List the processes again: a child forked before its parent stopped must stop as well.
        return all(machine.state_of(pid) in "Tt" for pid in [*pids, *machine.descendants(self.init)])

    def _all_killed(self) -> bool:
        pids = self._users_pids()
        machine.signal_all(pids, signal.SIGKILL)
        return not pids


class BusyboxHost(LabHost):
    """A host with only dropbear and busybox: no bash, no SFTP, no procps."""

    kind = "dropbear"
