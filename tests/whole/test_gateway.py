"""The SSH gateway over real loopback TCP: four SSH clients of other projects, and logins that must be refused."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import paramiko
import psutil
import pytest

from tests.whole.gateway_clients import CLIENTS, Exchange, Gateway, remote, require
from tests.whole.grid import Commands, wait_until
from tests.whole.samples import FOREVER

HELLO = b"import sys\nprint('hello', sys.argv[1:])\nprint('oops', file=sys.stderr)\nsys.exit(3)\n"
CAT = "import shutil, sys\nshutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)\n"
SIZE = (
    "import os, signal\n"
    "def say(*_): print('%dx%d' % os.get_terminal_size(0), flush=True)\n"
    "signal.signal(signal.SIGWINCH, say)\nsay()\n"
    "while True: signal.pause()\n"
)
AWKWARD = bytes(range(256)) * 4000
PING_SECONDS = 0.1

each_client = pytest.mark.parametrize("client", CLIENTS)


@pytest.fixture(scope="module")
def module_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("gateway"))
    yield gateway
    try:
        assert "Traceback" not in gateway.grid.log, gateway.grid.log
    finally:
        gateway.grid.stop()


@pytest.fixture
def gateway(module_gateway: Gateway) -> Iterator[Gateway]:
    yield module_gateway
    module_gateway.grid("kill", "all", "--signal", "KILL")


# --- users who log in, with each client -------------------------------------------------------------------------------


@each_client
def test_a_program_from_standard_input_gives_its_output_and_its_exit_code(gateway: Gateway, client: str) -> None:
    require(client)
    done = gateway.run(client, "run --lang python - a 'b c'", HELLO)
    assert (done.code, done.out) == (3, b"hello ['a', 'b c']\n")
    assert "oops" in done.err
    assert gateway.run(client, "run --lang python -", b"print(1)\n").code == 0


@each_client
def test_standard_input_and_output_are_byte_for_byte(gateway: Gateway, client: str) -> None:
    require(client)
    (gateway.home() / "cat.py").write_text(CAT)
    done = gateway.run(client, "run cat.py", AWKWARD)
    assert done.code == 0, done.err
    assert done.out == AWKWARD


@each_client
def test_a_program_on_a_terminal_gives_its_output_and_its_exit_code(gateway: Gateway, client: str) -> None:
    require(client)
    (gateway.home() / "hello.py").write_bytes(HELLO)
    done = gateway.run(client, "run hello.py", terminal=True)
    assert done.code == 3
    assert b"hello []\r\n" in done.out
    assert b"oops\r\n" in done.out


def test_the_window_size_and_its_changes_reach_the_program(gateway: Gateway) -> None:
    (gateway.home() / "size.py").write_text(SIZE)
    with gateway.connected() as transport:
        channel = transport.open_session()
        channel.get_pty("xterm", 97, 31)
        channel.exec_command("run -I size.py")
        talk = Exchange(channel)
        talk.wait_for_stdout(b"97x31")
        channel.resize_pty(120, 40)
        talk.wait_for_stdout(b"120x40")


def test_ctrl_c_ends_the_program(gateway: Gateway) -> None:
    (gateway.home() / "forever.py").write_text(FOREVER)
    with gateway.connected() as transport:
        channel = transport.open_session()
        channel.get_pty("xterm", 80, 24)
        channel.exec_command("run forever.py")
        talk = Exchange(channel)
        talk.wait_for_stdout(b"begun")
        channel.send(b"\x03")
        assert talk.to_end().code == 130
    wait_until(lambda: gateway.grid("--json", "ps").json["jobs"] == [], "no job")


def test_a_lost_client_does_not_end_its_job(gateway: Gateway) -> None:
    (gateway.home() / "forever.py").write_text(FOREVER)
    with gateway.connected() as transport:
        channel = transport.open_session()
        channel.exec_command("run --stdin none forever.py")
        Exchange(channel).wait_for_stdout(b"begun")
    wait_until(
        lambda: "alice disconnected" in gateway.audit.splitlines()[-1], "its end", seen=lambda: gateway.audit[-500:]
    )
    assert [job["state"] for job in gateway.grid("--json", "ps").json["jobs"]] == ["RUNNING"]


def test_lines_on_standard_input_are_commands_of_the_shell(gateway: Gateway) -> None:
    done = subprocess.run(
        gateway.openssh(), input=b"version\nnosuch\nexit\n", capture_output=True, timeout=60, check=False
    )
    assert done.stdout.startswith(b"sshgrid ")
    assert b"no such command: nosuch" in done.stderr


def test_a_terminal_without_a_command_gets_the_prompt(gateway: Gateway) -> None:
    with gateway.connected() as transport:
        channel = transport.open_session()
        channel.get_pty("xterm", 80, 24)
        channel.invoke_shell()
        talk = Exchange(channel)
        talk.wait_for_stdout(b"sshgrid>")
        channel.send(b"version\r")
        talk.wait_for_stdout(b"sshgrid 0.")
        channel.send(b"exit\r")
        assert talk.to_end().code == 0


def test_A34_escapes_in_a_job_name_are_not_sent_to_the_terminal_of_an_admin(gateway: Gateway) -> None:
    job = gateway.run("openssh", "run -d --name '\x1b[2Jx' --lang python -", b"pass\n").out.decode().strip()
    assert gateway.grid("user", "add", "ada", "--admin", "--key", str(gateway.keys["stranger"].public)).code == 0
    gateway.keys["ada"] = gateway.keys["stranger"]
    try:
        done = gateway.run("openssh", f"info {job}", name="ada")
        assert (done.code, b"\\x1b[2Jx" in done.out, b"\x1b" in done.out) == (0, True, False)
        assert b"alice" in gateway.run("openssh", "user ls", name="ada").out
    finally:
        assert gateway.grid("user", "rm", "ada").code == 0


# --- files -----------------------------------------------------------------------------------------------------------


def sftp(gateway: Gateway, *lines: str) -> subprocess.CompletedProcess[bytes]:
    words = [
        "sftp",
        "-F",
        "none",
        "-q",
        "-b",
        "-",
        "-P",
        str(gateway.address.port),
        "-i",
        str(gateway.keys["alice"].path),
    ]
    batch = "".join(f"{line}\n" for line in lines).encode()
    return subprocess.run(
        [*words, *gateway.known, "alice@127.0.0.1"], input=batch, capture_output=True, timeout=60, check=False
    )


def test_files_uploaded_by_sftp_and_scp_can_be_run(gateway: Gateway, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "Makefile").write_text("run:\n\t@cat data\n")
    (project / "data").write_bytes(b"of the project\n")
    done = sftp(gateway, f"put -r {project}", "cd project", "pwd", "ls -l")
    assert done.returncode == 0, done
    assert b"/project" in done.stdout
    assert gateway.run("openssh", "run project run").out == b"of the project\n"
    (tmp_path / "by.py").write_bytes(HELLO)
    words = ["-F", "none", "-P", str(gateway.address.port), "-i", str(gateway.keys["alice"].path), *gateway.known]
    subprocess.run(["scp", *words, str(tmp_path / "by.py"), "alice@127.0.0.1:"], check=True, timeout=60)
    assert gateway.run("openssh", "run by.py x").out == b"hello ['x']\n"
    back = tmp_path / "back.py"
    subprocess.run(["scp", *words, "alice@127.0.0.1:by.py", str(back)], check=True, timeout=60)
    assert back.read_bytes() == HELLO
    old = subprocess.run(["scp", "-O", *words, "alice@127.0.0.1:by.py", str(back)], capture_output=True, check=False)
    assert old.returncode != 0
    assert b"old protocol" in old.stderr


def test_A26_no_path_leads_out_of_the_folder(gateway: Gateway, tmp_path: Path) -> None:
    secret = tmp_path / "secret.py"
    secret.write_text("print('TOPSECRET')\n")
    home = gateway.home()
    for link, target in (("link.py", secret), ("folder", tmp_path)):
        if not (home / link).is_symlink():
            (home / link).symlink_to(target)
    os.mkfifo(home / "fifo.py")
    for path in (str(secret), "../../master.log", "link.py", "folder/secret.py", "folder", "fifo.py", "./../alice/x"):
        for words in (f"run {path}", f"run --lang python --stdin {path} cat.py", f"nosuch {path}"):
            done = gateway.run("openssh", words)
            assert done.code != 0, (words, done)
            assert b"TOPSECRET" not in done.out + done.err.encode()
    with gateway.connected() as transport:
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        for path in ("link.py", "folder/secret.py", "fifo.py"):
            with pytest.raises(OSError):
                client.open(path).read()
        with pytest.raises(OSError):
            client.symlink("/etc/passwd", "another")
        with pytest.raises(OSError):
            client.readlink("link.py")
        for path in ("../../../escaped", "/escaped", "/../../escaped"):
            with client.open(path, "w") as file:
                file.write(b"inside")
            assert (home / "escaped").read_bytes() == b"inside"
            client.remove(path)
        assert client.normalize("/../../..") == "/"
        assert not (home / "escaped").exists()
        with pytest.raises(OSError):
            client.open("folder/new", "w")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["secret.py"]
    for name in ("link.py", "folder", "fifo.py"):
        (home / name).unlink()


def test_A33_uploads_over_the_folder_quota_are_refused(gateway: Gateway) -> None:
    assert gateway.grid("user", "limit", "bob", "--upload", "100K").code == 0
    with gateway.connected("bob") as transport:
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        with client.open("fits", "w") as file:
            file.write(bytes(60_000))
        with pytest.raises(OSError, match="more than"), client.open("much", "w") as file:
            file.write(bytes(60_000))
        with pytest.raises(OSError, match="more than"):
            client.truncate("fits", 1 << 40)
        client.remove("fits")
        with client.open("again", "w") as file:
            file.write(bytes(60_000))
    assert sum(path.stat().st_size for path in gateway.home("bob").iterdir()) <= 100 << 10


# --- logins and requests that are refused -----------------------------------------------------------------------------


def test_an_unknown_key_and_an_unknown_user_get_the_same_refusal(gateway: Gateway) -> None:
    said = []
    for name, key in (("alice", "stranger"), ("mallory", "stranger"), ("alice", "bob")):
        done = subprocess.run(
            [*gateway.openssh(name, key=key), "version"], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (255, b"")
        said.append(done.stderr.decode().replace(name, "NAME"))
    assert "Permission denied" in said[0]
    assert len(set(said)) == 1, said
    wait_until(
        lambda: "login of 'mallory' from 127.0.0.1 was refused" in gateway.audit,
        "the refusal",
        seen=lambda: gateway.audit,
    )


def test_A27_a_password_logs_in_and_wrong_ones_wait_and_end_the_connection(gateway: Gateway) -> None:
    assert gateway.grid("user", "passwd", "bob", "--password-stdin", stdin=b"correct horse\n").code == 0
    with gateway.connected("bob", password="correct horse") as transport:
        assert transport.is_authenticated()
    for name in ("bob", "nobody"):
        transport = paramiko.Transport(("127.0.0.1", gateway.address.port))
        transport.start_client(timeout=60)
        with pytest.raises(paramiko.AuthenticationException):
            transport.auth_password(name, "wrong horse")
        for _ in range(3):
            with pytest.raises((paramiko.SSHException, EOFError)):
                transport.auth_password(name, "wrong horse")
        wait_until(lambda transport=transport: not transport.is_active(), "the end of the connection")  # type: ignore[misc]
    assert "horse" not in gateway.grid.log
    assert gateway.grid("user", "passwd", "bob", "--remove").code == 0
    with pytest.raises(paramiko.SSHException), gateway.connected("bob", password="correct horse"):
        pass
    assert gateway.run("openssh", "version", name="bob").code == 0, (
        "a login with a key does not wait for wrong passwords"
    )


def test_a_removed_user_is_disconnected_at_once(gateway: Gateway) -> None:
    with gateway.connected("bob") as transport:
        assert gateway.grid("user", "rm", "bob").code == 0
        wait_until(lambda: not transport.is_active(), "the end of the session")
    assert gateway.run("openssh", "version", name="bob").code == 255
    gateway.add_user("bob")
    assert gateway.run("openssh", "version", name="bob").code == 0


def test_A31_a_job_of_another_user_is_answered_like_a_missing_job(gateway: Gateway) -> None:
    job = gateway.run("openssh", "run -d --lang python - ", b"print('hers')\n").out.decode().strip()
    wait_until(lambda: gateway.run("openssh", f"logs {job}").out == b"hers\n", "its output")
    for words in ("info", "logs", "attach", "wait", "kill", "rm", "hold"):
        his, missing = (
            gateway.run("openssh", f"{words} {job}", name="bob"),
            gateway.run("openssh", f"{words} 99999", name="bob"),
        )
        assert (his.code, his.out, his.err) == (missing.code, missing.out, missing.err.replace("99999", job))
    assert b"hers" not in gateway.run("openssh", "ps -a", name="bob").out
    assert gateway.run("openssh", f"info {job}").code == 0


def test_commands_that_the_gateway_does_not_offer_are_refused(gateway: Gateway) -> None:
    for words in (
        "master stop",
        "master logs",
        "inventory edit",
        "node add x y",
        "doctor",
        "user ls",
        "completion bash",
    ):
        done = gateway.run("openssh", words)
        assert (done.code, done.out) == (1, b""), done
    for words in ("-i /etc/passwd inventory show", "--master ssh://x inventory path"):
        assert gateway.run("openssh", words).code != 0


def test_A32_forwarding_and_most_environment_variables_are_refused(gateway: Gateway) -> None:
    with gateway.connected() as transport:
        for kind in ("direct-tcpip", "forwarded-tcpip"):
            with pytest.raises(paramiko.ChannelException):
                transport.open_channel(kind, ("127.0.0.1", 22), ("127.0.0.1", 1))
        with pytest.raises(paramiko.SSHException):
            transport.request_port_forward("127.0.0.1", 0)
        for name, wanted in (("LD_PRELOAD", False), ("PYTHONSTARTUP", False), ("LC_TIME", True)):
            channel = transport.open_session()
            channel.update_environment({name: "C.UTF-8"})
            channel.exec_command(f"run --lang python --env {name} -")
            done = Exchange(channel).to_end(b"pass\n")
            assert (done.code == 0) is wanted, (name, done)
        assert transport.remote_version == "SSH-2.0-sshgrid"


@pytest.mark.parametrize(
    "command", [b"run \0x", b"x" * 100_000, b"run '", b"", b"\xff\xfe", b"run \x1b[2J", b";reboot"]
)
def test_A33_a_malformed_command_is_refused_and_the_connection_continues(gateway: Gateway, command: bytes) -> None:
    with gateway.connected() as transport:
        channel = transport.open_session()
        try:
            channel.exec_command(command)
            assert Exchange(channel).to_end().code != 0 or command == b""
        except paramiko.SSHException:
            assert command == b"\xff\xfe"
        channel = transport.open_session()
        channel.exec_command("version")
        assert Exchange(channel).to_end().code == 0


def test_A33_a_command_of_a_megabyte_ends_only_its_connection(gateway: Gateway) -> None:
    with gateway.connected() as other, gateway.connected() as transport:
        channel = transport.open_session()
        with pytest.raises((paramiko.SSHException, EOFError)):
            channel.exec_command("x" * (1 << 20))
        channel = other.open_session()
        channel.exec_command("version")
        assert Exchange(channel).to_end().code == 0


# --- load ------------------------------------------------------------------------------------------------------------


def test_A29_the_master_answers_during_500_silent_connections(gateway: Gateway) -> None:
    silent = [socket.create_connection(("127.0.0.1", gateway.address.port)) for _ in range(500)]
    try:
        assert max(gateway.ping() for _ in range(20)) < PING_SECONDS
        elsewhere = [*gateway.openssh("alice", "-b", "127.0.0.2"), "version"]
        assert subprocess.run(elsewhere, capture_output=True, check=False).returncode == 0
        wait_until(lambda: gateway.run("openssh", "version").code == 0, "a place for a client that sends something", 5)
    finally:
        for sock in silent:
            sock.close()


def test_40_clients_at_once_are_served_and_counted(gateway: Gateway) -> None:
    (gateway.home() / "forever.py").write_text(FOREVER)
    with gateway.connected() as transport:
        channel = transport.open_session()
        channel.exec_command("run --stdin none forever.py")
        Exchange(channel).wait_for_stdout(b"begun")
        (line,) = [line for line in gateway.clients() if line.user == "alice"]
        assert (line.address, line.running) == ("127.0.0.1", 1)
        asked = [
            subprocess.Popen([*gateway.openssh(name), "ps"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for name in ("alice", "bob") * 20
        ]
        said = [(process.communicate(timeout=60), process.returncode) for process in asked]
    assert [code for _, code in said] == [0] * 40
    assert [b"forever.py" in out for (out, _), _ in said] == [True, False] * 20


def test_the_audit_log_has_each_login_submission_and_kill_and_is_private(gateway: Gateway) -> None:
    job = gateway.run("openssh", "run -d --lang python -", b"import signal; signal.pause()\n").out.decode().strip()
    assert gateway.run("openssh", f"kill {job}").code == 0
    for wanted in (
        "AddUser alice",
        "alice logged in with key SHA256:",
        f"alice submitted job {job}: ",
        "alice disconnected",
    ):
        assert wanted in gateway.audit
    assert f"alice sent TERM to job {job}" in gateway.audit
    assert (gateway.grid.state_dir / "audit.log").stat().st_mode & 0o077 == 0
    assert (gateway.grid.state_dir / "gateway_host_key").stat().st_mode & 0o077 == 0


def test_A33_a_client_that_never_reads_costs_little_memory_and_delays_no_other(gateway: Gateway) -> None:
    (gateway.home() / "much.py").write_text("import sys\nfor _ in range(500): sys.stdout.write('x' * 100_000)\n")
    master = psutil.Process(gateway.grid.master_pid())
    with gateway.connected() as transport:
        channel = transport.open_session()
        channel.exec_command("run --stdin none much.py")
        wait_until(lambda: gateway.grid("--json", "ps", "-a").json["jobs"][-1]["state"] == "COMPLETED", "its end", 60)
        before = master.memory_info().rss
        assert max(gateway.ping() for _ in range(20)) < PING_SECONDS
        assert gateway.run("openssh", "version").code == 0
        assert master.memory_info().rss - before < 20 << 20
        got = 0
        channel.settimeout(30)
        while piece := channel.recv(1 << 20):
            got += len(piece)
        assert (got, channel.recv_exit_status()) == (50_000_000, 0)


# --- sshgrid as the client --------------------------------------------------------------------------------------------


def elsewhere(commands: Commands, gateway: Gateway, *words: str, stdin: bytes | None = None) -> tuple[int, bytes, str]:
    url = f"ssh://alice@127.0.0.1:{gateway.address.port}"
    path = f"{commands.home}/bin:{os.environ['PATH']}"
    return commands("--master", url, *words, stdin=stdin, env={"PATH": path})


def test_a_remote_sshgrid_uploads_its_files(gateway: Gateway, tmp_path: Path) -> None:
    far = remote(gateway, tmp_path)
    far.write("far.py", HELLO)
    assert elsewhere(far, gateway, "run", "far.py", "x")[:2] == (3, b"hello ['x']\n")
    far.write("cat.py", CAT)
    assert elsewhere(far, gateway, "run", "cat.py", stdin=AWKWARD)[1] == AWKWARD
    assert b"far.py" in elsewhere(far, gateway, "ps", "-a")[1]
    assert elsewhere(far, gateway, "master", "status")[0] == 2
    for url in ("ssh://-oProxyCommand=x", "http://x", "ssh://a b", "ssh://x:99999", "ssh://-l@x"):
        assert far("--master", url, "ps").code == 2
    done = far("--master", "ssh://alice@127.0.0.1:1", "ps", env={"PATH": f"{far.home}/bin:{os.environ['PATH']}"})
    assert (done.code, "cannot reach the master" in done.err) == (125, True)


def test_a_sweep_through_the_gateway_writes_its_results_on_the_client(gateway: Gateway, tmp_path: Path) -> None:
    far = remote(gateway, tmp_path)
    far.write("say.py", "import sys\nprint('said', sys.argv[1])\n")
    words = ("sweep", "-k", "--results", "out", "--joblog", "log", "-p", "x=1..3", "say.py")
    said = b"said 1\nsaid 2\nsaid 3\n"
    assert elsewhere(far, gateway, *words)[:2] == (0, said)
    assert (far.folder / "out" / "x=2" / "stdout").read_bytes() == b"said 2\n"
    assert elsewhere(far, gateway, "sweep", "--resume", *words[1:])[:2] == (0, b"")
    program = b"import sys\nprint('said', sys.argv[1])\n"
    done = gateway.run("openssh", "sweep -k --results a/out --joblog a/log --lang python -p x=1..3 -", program)
    assert (done.code, done.out) == (0, said), done
    gateway.run("openssh", "sweep -k --results a/out --resume --lang python -p x=1..3 -", program)
    assert sftp(gateway, "ls a/out/x=3/stdout", "get a/log /dev/null").returncode == 0
    for path in ("../out", "/tmp/out", "a/../../out"):
        for option in ("--results", "--joblog"):
            done = gateway.run("openssh", f"sweep {option} {path} --lang python -p x=1 -", program)
            assert (done.code, "outside of your folder" in done.err) == (2, True), done


def test_the_next_master_has_the_queue_and_the_gateway_again(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path)
    try:
        assert gateway.run("openssh", "version").code == 0
        gateway.grid.stop()
        assert gateway.grid("ps").code == 0  # starts another one
        status = gateway.grid("--json", "master", "status").json
        assert status["gateway_key"] == gateway.address.host_key
        assert status["gateway"]
        assert gateway.grid("user", "ls", "--json").json["users"][0]["name"] == "alice"
    finally:
        gateway.grid.stop()


def test_files_pass_through_the_gateway_and_stay_in_the_folder_of_the_user(gateway: Gateway, tmp_path: Path) -> None:
    theirs = remote(gateway, tmp_path)
    theirs.write("sum.sh", "mkdir out; cat data/* >out/sum; head -c 100 /dev/zero >out/zero\n")
    for number in range(10):
        theirs.write(f"data/{number}", f"{number}")
    done = elsewhere(theirs, gateway, "run", "--with", "data", "--fetch", "out/*", "--into", "b", "sum.sh")
    assert done[:2] == (0, b""), done
    assert (theirs.folder / "b/out/sum").read_bytes() == b"0123456789"
    over = elsewhere(theirs, gateway, "run", "--fetch", "../../etc/passwd", "sum.sh")
    assert (over[0], "leads out" in over[2]) == (2, True)

    home = gateway.home()
    (home / "data").mkdir(exist_ok=True)
    (home / "data/x").write_text("mine")
    (home / "sum.sh").write_bytes((theirs.folder / "sum.sh").read_bytes())
    inside = gateway.run("openssh", "run --with data --fetch out/sum --into back sum.sh")
    assert (inside.code, (home / "back/out/sum").read_text()) == (0, "mine"), inside
    for words in ("--with /etc/passwd", "--with ../bob", "--fetch out --into /tmp/x", "--fetch out --into ../x"):
        refused = gateway.run("openssh", f"run {words} sum.sh")
        assert (refused.code, "outside of your folder" in refused.err) == (2, True), (words, refused)
