"""The diagnosis of a node, from the facts that `remote/doctor.sh` prints. Pure.

A finding that is not ok breaks runs sooner or later; one that is ok may have a hint how to improve it. A fact that the
node does not report gives no finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sshgrid.errors import HostError
from sshgrid.notation.quantities import format_size
from sshgrid.protocol.messages import Finding

CHANNELS = 6  # that the master opens on one connection, with those for user commands
LEAST_STARTUPS = 4  # logins at the same time
LEAST_FREE_BYTES = 100 << 20
LEAST_FREE_FILES = 1000
CLOCK_SECONDS = 5.0
LEAST_LIMITS = {"Max processes": 256, "Max file size": 1 << 30, "Max open files": 256}
_SETTERS = {"Max processes": "ulimit -u", "Max file size": "ulimit -f", "Max open files": "ulimit -n"}

Facts = Mapping[str, Sequence[str]]


def read(output: bytes) -> dict[str, list[str]]:
    """Return the values of each fact by its name: a fact can have more than one value."""
    facts: dict[str, list[str]] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(" ")
        facts.setdefault(name, []).append(value.strip())
    return facts


def unreachable(error: HostError) -> Finding:
    """Return the finding of a node without a connection."""
    return Finding("connection", False, error.reason, error.hint or f"sshgrid node check {error.node}")


def findings(facts: Facts, seconds_ahead: float, slack_seconds: float, *, by_sshd: bool = True) -> Iterator[Finding]:
    """Yield what the facts show. The node's clock is `seconds_ahead` of the master's, plus or minus `slack_seconds`."""
    yield Finding("system", True, f"{_one(facts, 'system')}, login shell {_one(facts, 'shell')}")
    if by_sshd:
        yield from _sshd(facts)
    yield from _logind(facts)
    yield from _space(facts)
    yield _clock(seconds_ahead, slack_seconds)
    yield from _path(facts)
    yield from _limits(facts)
    yield _isolation(facts)


def _one(facts: Facts, name: str) -> str:
    return facts.get(name, [""])[0]


def _sshd(facts: Facts) -> Iterator[Finding]:
    sessions = _one(facts, "maxsessions")
    if not sessions.isdigit():
        yield Finding("sshd sessions", True, "MaxSessions cannot be read, or has its default of 10")
    elif int(sessions) < CHANNELS:
        hint = "set MaxSessions 10 in its sshd_config, and reload sshd"
        yield Finding("sshd sessions", False, f"MaxSessions {sessions}; sshgrid needs {CHANNELS}", hint)
    else:
        yield Finding("sshd sessions", True, f"MaxSessions {sessions}")
    startups = _one(facts, "maxstartups")
    first = startups.partition(":")[0]
    if not first.isdigit():
        yield Finding("sshd logins", True, "MaxStartups cannot be read, or has its default of 10:30:100")
    elif int(first) < LEAST_STARTUPS:
        hint = "set MaxStartups 10:30:100 in its sshd_config, and reload sshd"
        yield Finding("sshd logins", False, f"MaxStartups {startups}: connections at the same time are refused", hint)
    else:
        yield Finding("sshd logins", True, f"MaxStartups {startups}")


def _logind(facts: Facts) -> Iterator[Finding]:
    kills = _one(facts, "killuserprocesses")
    if not kills:
        return
    keep_warm = _one(facts, "linger") == "yes"
    if kills in ("yes", "true", "1", "on") and not keep_warm:
        what = "KillUserProcesses=yes: runs are killed when the connection ends"
        yield Finding("logind", False, what, "run on the node, as that account: loginctl enable-linger")
    else:
        yield Finding("logind", True, f"KillUserProcesses={kills}" + (", lingering is enabled" if keep_warm else ""))


def _space(facts: Facts) -> Iterator[Finding]:
    for value in dict.fromkeys(facts.get("space", [])):
        free, files, folder = (*value.split(" ", 2), "", "", "")[:3]
        if not free.isdigit():
            continue
        enough = int(free) * 1024 >= LEAST_FREE_BYTES and not (files.isdigit() and int(files) < LEAST_FREE_FILES)
        detail = f"{format_size(int(free) * 1024)} free in {folder}" + (f", {files} files" if files.isdigit() else "")
        yield Finding("space", enough, detail, "" if enough else f"free space on the node, or set workdir: df {folder}")
    word, _, folder = _one(facts, "tmp").partition(" ")
    if word == "unfit":
        yield Finding("temporary files", False, f"{folder} is not writable", f"run on the node: ls -ld {folder}")


def _clock(ahead: float, slack: float) -> Finding:
    good = abs(ahead) <= CLOCK_SECONDS + slack
    detail = (
        f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the master's"
        if abs(ahead) > 1
        else "same time as the master"
    )
    return Finding("clock", good, detail, "" if good else "run on the node: timedatectl set-ntp true")


def _path(facts: Facts) -> Iterator[Finding]:
    if "loginpath" not in facts:
        return
    seen = _one(facts, "path").split(":")
    hidden = [folder for folder in _one(facts, "loginpath").split(":") if folder.startswith("/") and folder not in seen]
    if hidden:
        detail = f"only a login shell searches {', '.join(hidden)}: tools in it are not found"
        yield Finding(
            "PATH", True, detail, "add them to PATH at the top of ~/.bashrc or in /etc/environment on the node"
        )
    else:
        yield Finding("PATH", True, "a login shell searches no other folders")


def _limits(facts: Facts) -> Iterator[Finding]:
    for value in facts.get("limit", []):
        number, _, name = value.partition(" ")
        if name not in LEAST_LIMITS:
            continue
        enough = not number.isdigit() or int(number) >= LEAST_LIMITS[name]
        hint = "" if enough else f"{_SETTERS[name]}, in /etc/security/limits.conf on the node"
        yield Finding(f"limit of {name.removeprefix('Max ')}", enough, number, hint)


def _isolation(facts: Facts) -> Finding:
    if "pidns" in facts:
        return Finding("isolation", True, "pidns: every process of a run is found and ended")
    barrier = _one(facts, "barrier") or "unshare fails"
    settings = {name: value for value, _, name in (each.partition(" ") for each in facts.get("sysctl", []))}
    detail = f"session: processes that leave their run are searched for, not contained. No pid namespace: {barrier}"
    return Finding("isolation", True, detail, _remedy(barrier, settings))


def _remedy(barrier: str, settings: Mapping[str, str]) -> str:
    if "not installed" in barrier:
        return "install util-linux on the node"
    if settings.get("kernel/unprivileged_userns_clone") == "0":
        return "run on the node: sysctl kernel.unprivileged_userns_clone=1"
    if settings.get("user/max_user_namespaces") == "0":
        return "run on the node: sysctl user.max_user_namespaces=10000"
    if settings.get("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "run on the node: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    return "in a container: run it with its own /proc, or with --security-opt systempaths=unconfined"
