"""Files that are sent with a run and fetched after it, on real SSH hosts."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.lab.hosts import Lab
from tests.whole.grid import Grid, wait_until

pytestmark = pytest.mark.lab

# Lists the files in the folder of the run with mode and the first digits of the digest.
LIST = """cd . && find . -type f | LC_ALL=C sort | while IFS= read -r f; do
  m=-; [ ! -x "$f" ] || m=x
  printf '%s %s %s\\n' "$f" "$m" "$(sha256sum <"$f" | cut -c 1-8)"
done
"""


def expected_list(*files: tuple[str, str, bytes]) -> str:
    rows = sorted((f"./{name}", mode, hashlib.sha256(content).hexdigest()[:8]) for name, mode, content in files)
    return "".join(f"{name} {mode} {digest}\n" for name, mode, digest in rows)


def test_sent_files_arrive_with_their_names_modes_and_contents(
    grid: Grid, tmp_path_factory: pytest.TempPathFactory
) -> None:
    grid.write("list.sh", LIST)
    grid.write('data/it\'s "x" $(id).csv', b"\0\xff")
    grid.write("data/deep/er/tool.sh", "echo tool\n").chmod(0o755)
    big = os.urandom(3 << 20)
    grid.write("data/big.bin", big)
    grid.write("one/two/three.txt", "3")
    outside = tmp_path_factory.mktemp("outside") / "far.txt"
    outside.write_text("far")
    done = grid("run", "--with", "./data/", "--with", "one/two/three.txt", "--with", str(outside), "list.sh")
    assert done == (
        0,
        expected_list(
            ('data/it\'s "x" $(id).csv', "-", b"\0\xff"),
            ("data/deep/er/tool.sh", "x", b"echo tool\n"),
            ("data/big.bin", "-", big),
            ("one/two/three.txt", "-", b"3"),
            ("far.txt", "-", b"far"),
        ).encode(),
        "",
    )


WRITES = """mkdir -p out/deep .hidden
printf 'a,b\\n' >out/a.csv
printf '0123456789' >"out/deep/b c.csv"
printf x >out/note.txt; printf x >.hidden/dot
echo run >tool.sh; chmod +x tool.sh
exit ${1-0}
"""


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of each regular file below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_a_failed_program_are_fetched(grid: Grid) -> None:
    grid.write("writes.sh", WRITES)
    done = grid("run", "--fetch", "out/**/*.csv", "--fetch", "tool.sh", "--into", "back", "writes.sh", "3")
    assert done == (
        3,
        b"",
        "fetched back/out/a.csv (4B)\nfetched back/out/deep/b c.csv (10B)\nfetched back/tool.sh (4B)\n",
    )
    assert files_below(grid.folder / "back") == {
        "out/a.csv": b"a,b\n",
        "out/deep/b c.csv": b"0123456789",
        "tool.sh": b"run\n",
    }
    assert os.access(grid.folder / "back/tool.sh", os.X_OK)
    assert not os.access(grid.folder / "back/out/a.csv", os.X_OK)


def test_wrong_file_options_are_refused_before_a_job_is_created(grid: Grid) -> None:
    grid.write("hello.sh", "echo hello\n")
    grid.write("file", "")
    (grid.folder / "d").mkdir()
    (grid.folder / "d/out").symlink_to("/etc/passwd")
    before = grid("--json", "ps", "-a").json["jobs"]
    for code, words, wanted in [
        (127, ["--with", "nowhere", "--with", "neither"], ["nowhere", "neither"]),
        (2, ["--with", "nowhere", "--with", "d"], ["nowhere", "d/out", "/etc/passwd"]),
        (2, ["--fetch", "../x"], ["../x", "leads out"]),
        (2, ["--fetch", "/etc/passwd"], ["absolute"]),
        (2, ["--fetch", ""], ["is empty"]),
        (2, ["--into", "x"], ["--fetch"]),
        (2, ["--fetch", "*", "--into", "file"], ["is not a folder"]),
        (2, ["-d", "--fetch", "*", "--into", "x"], ["attach"]),
    ]:
        done = grid("run", *words, "hello.sh")
        assert (done.code, done.out) == (code, b""), (words, done)
        assert all(word in done.err for word in wanted), (words, done)
    assert grid("--json", "ps", "-a").json["jobs"] == before


def test_a_pattern_without_a_match_is_reported_and_the_exit_code_is_kept(grid: Grid) -> None:
    grid.write("writes.sh", WRITES + "ln -s /etc/passwd out/passwd\n")
    grid.write("links.sh", "mkdir out; ln -s /etc/passwd out/passwd; echo x >out/x; exit 4\n")
    done = grid("-q", "run", "--fetch", "none/*", "--fetch", "out", "--into", "b", "links.sh")
    assert (done.code, done.out) == (4, b"")
    assert "--fetch none/*: no file matches" in done.err
    assert "out/passwd is a link out of the run's folder" in done.err
    assert files_below(grid.folder / "b") == {"out/x": b"x\n"}


def test_files_are_fetched_after_the_time_limit_ended_the_program(grid: Grid) -> None:
    grid.write("slow.sh", "echo half >half; while :; do sleep 1; done\n")
    done = grid("run", "--time-limit", "1s", "--fetch", "half", "slow.sh")
    assert done.code == 124
    assert "fetched half (5B)" in done.err
    assert (grid.folder / "half").read_text() == "half\n"


def test_attach_fetches_the_files_of_an_ended_job_until_rm(grid: Grid) -> None:
    grid.write("writes.sh", WRITES)
    job = grid.detach("--fetch", "out/*.csv", "writes.sh")
    assert grid("wait", job).code == 0
    done = grid("--json", "attach", job, "--into", "later")
    assert done.code == 0
    events = [(each["name"], each["size"]) for each in done.lines if each.get("event") == "fetched"]
    assert events == [("later/out/a.csv", 4)]
    assert done.lines[-1]["fetched"] == {"files": 1, "size": 4, "warnings": [], "whole": True}
    assert files_below(grid.folder / "later") == {"out/a.csv": b"a,b\n"}
    assert grid("attach", job, "--into", "later").err == "fetched later/out/a.csv (4B), replaced\n"
    grid("rm", job)
    assert not list(grid.state_dir.glob(f"spool/out/{job}*"))


def test_a_full_local_disk_is_reported_and_attach_fetches_again(grid: Grid) -> None:
    grid.write("big.sh", "echo 1 >a; head -c 4000000 /dev/zero >big\n")
    small = grid.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        done = grid("run", "--fetch", "*", "--into", "small", "big.sh")
        assert done.code == 125
        assert "No space left on device" in done.err
        assert "attach" in done.err
        assert files_below(small) == {"a": b"1\n"}
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    assert grid("attach", "last", "--into", "again").code == 0
    assert len(files_below(grid.folder / "again")["big"]) == 4_000_000


def test_many_small_files_are_sent_once_per_node_and_fetched(grid: Grid) -> None:
    grid.write("count.sh", "find data -type f | wc -l\nfor f in data/*/*; do echo more >>$f; done\n")
    for number in range(1000):
        grid.write(f"data/{number % 10}/{number}", f"{number}\n")
    for again in range(2):
        done = grid("-q", "run", "--on", "h2", "--with", "data", "--fetch", "data", "--into", "b", "count.sh")
        assert (done.code, done.text.split(), done.err) == (0, ["1000"], "")
        assert (grid.last_job()["attempts"][0]["uploaded_bytes"] == 0) == bool(again)
    assert files_below(grid.folder / "b") == {f"data/{n % 10}/{n}": b"%d\nmore\n" % n for n in range(1000)}
    assert (grid.folder / "data/1/1").read_text() == "1\n"


def test_F7_a_reset_while_files_are_fetched_needs_no_second_attempt(grid: Grid, hosts: Lab) -> None:
    grid.wait_until_up()
    grid.write("big.sh", "echo ready; head -c 300000000 /dev/zero >big\n")
    with grid.start("run", "--on", "h3", "--fetch", "big", "--into", "b", "big.sh") as client:
        jobs = grid.state_dir / "spool/out"
        wait_until(lambda: any(path.stat().st_size for path in jobs.glob("*/*.files")), "the first bytes", 40)
        hosts["h3"].reset_sessions()
        done = client.result(60)
    assert (done.code, done.out) == (0, b"ready\n")
    assert (grid.folder / "b/big").stat().st_size == 300_000_000
    assert len(grid.last_job()["attempts"]) == 1
    grid("rm", "last")


def test_all_files_of_a_project_folder_are_sent(grid: Grid) -> None:
    grid.write("p/Makefile", "run:\n\t@ls parts | wc -l\n")
    for number in range(50):
        grid.write(f"p/parts/{number}", f"part {number}")
    done = grid("run", "p")
    assert (done.code, done.text.split()) == (0, ["50"])


BIG_BYTES = 400_000_000


def test_F7_an_interrupted_upload_sends_only_the_rest_and_reports_progress(
    grid: Grid, hosts: Lab, tmp_path: Path
) -> None:
    grid.write("sum.sh", "sha256sum <big | cut -c 1-64\n")
    digest = hashlib.sha256()
    with (tmp_path / "big").open("wb") as file:
        for _ in range(BIG_BYTES // 4_000_000):
            digest.update(piece := os.urandom(4_000_000))
            file.write(piece)
    part = f"{hosts['h1'].workdir}/objects/{digest.hexdigest()}.part"

    def bytes_received() -> int:
        return int(hosts["h1"].run(["sh", "-c", f"stat -c %s {part} 2>/dev/null || echo 0"]).stdout)

    with grid.start("--json", "run", "--on", "h1", "--with", "big", "sum.sh") as running:
        wait_until(lambda: bytes_received() > BIG_BYTES // 4, "a part of the file to be received")
        hosts["h1"].reset_sessions()
        left = bytes_received()
        done = running.result()
    assert done.code == 0
    assert 0 < left < BIG_BYTES, "the upload was complete before the reset"
    attempts = grid.last_job()["attempts"]
    sent = sum(attempt["uploaded_bytes"] for attempt in attempts)
    assert len(attempts) == 2
    assert attempts[1]["uploaded_bytes"] < BIG_BYTES * 4 // 5, (left, attempts)
    assert sent < BIG_BYTES * 3 // 2, (left, attempts)
    progress = [each for each in done.lines if each.get("event") == "progress" and "sent_bytes" in each]
    assert progress
    assert all(each["sent_bytes"] < each["total_bytes"] for each in progress)
    assert any(digest.hexdigest() in str(each.get("text")) for each in done.lines if each.get("event") == "output")


def test_a_large_file_is_sent_once_per_node_and_again_after_a_run_has_changed_it(grid: Grid) -> None:
    grid.write("spoil.sh", "cksum <big; chmod u+w big; echo spoiled >>big\n")
    grid.write("look.sh", "cksum <big\n")
    grid.write("big", os.urandom(40_000_000))
    printed, sent = [], []
    for program in ("look.sh", "look.sh", "spoil.sh", "look.sh"):
        done = grid("-q", "run", "--on", "h3", "--with", "big", program)
        assert (done.code, done.err) == (0, "")
        printed.append(done.text)
        sent.append(grid.last_job()["attempts"][0]["uploaded_bytes"] > 30_000_000)
    assert len(set(printed)) == 1
    assert sent == [True, False, False, True], "sent again only after a program has changed it"
