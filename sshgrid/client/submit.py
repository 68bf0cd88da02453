"""Submit one job: complete its description, send the files that the master lacks, and submit it exactly once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sshgrid.client.run_options import submission_fields
from sshgrid.client.session import Session
from sshgrid.errors import MasterGone, UsageError

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.client.data import Data
    from sshgrid.client.local_files import LocalFileOffer
    from sshgrid.client.program import ProgramFiles, Source
    from sshgrid.model import JobId, Submission
    from sshgrid.terminal.bar import TransferBar


SUBMIT_TRIES = 5  # masters that may go, one after the other, while a job is handed over


_LANG = re.compile(r"([A-Za-z0-9_+#.-]+?)\s*([<>=!~][<>=!~.,*\s0-9A-Za-z_+-]*)?")


_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


_SHOWN = 4000  # characters of a command


# What a shell takes as it is, as shlex.quote sees it.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")


class RunRequest:
    """The words of `run` (or `sweep`), turned into a submission."""

    def __init__(self, file: str, args: Sequence[str], wanted: Mapping[str, Any]) -> None:
        self._file, self._args, self._wanted = file, args, wanted
        self._language, self._version = language_and_version(self._text("lang"))
        if wanted["interactive"] and (wanted["detach"] or wanted["stdin"] or file == "-"):
            raise UsageError("-I ties the run to this terminal: it goes with neither -d, --stdin nor a program from -")
        if wanted["fetch"] or wanted["into"]:
            _check_fetch(wanted)

    def _text(self, name: str) -> str:
        return str(self._wanted[name])

    def read(self, session: Session, *, ask: bool = True) -> tuple[ProgramFiles, Source | None, Data | None]:
        """The files; `ask`: a master may be asked to read some of them itself."""
        from sshgrid.client.local_files import LocalFileOffer
        from sshgrid.client.program import our_stdin, read_program, read_stdin

        program = read_program(self._file, self._language, our_stdin(), self._text("main"))
        choice = self._text("stdin")
        if self._wanted["interactive"] or (self._file == "-" and not choice):
            choice = "none"
        if self._file == "-" and choice == "-":
            raise UsageError("standard input cannot be both the program and its input", "--stdin FILE")
        stdin = None if session.in_shell else our_stdin()
        with LocalFileOffer(session, able=ask) as offer:
            data = self._data(offer)
            return program, read_stdin(choice, stdin, session.note, offer), data

    def _data(self, offer: LocalFileOffer) -> Data | None:
        """None without --with: most runs have none, and are not to wait for the import."""
        if not self._wanted["with"]:
            return None
        from sshgrid.client.data import read_data

        return read_data(self._wanted["with"], offer)

    def submission(self, program_files: ProgramFiles, stdin: Source | None, data: Data | None) -> Submission:
        from sshgrid.model import Limits, OnDisconnect, OnHostLoss, Program, Submission

        wanted = self._wanted
        interactive = bool(wanted["interactive"])
        fields, limits = submission_fields(wanted)
        program = Program(
            # "" = the master decides: it knows the languages that the inventory adds or overrides.
            language=self._language or program_files.language,
            entry=program_files.entry,
            files=tuple(source.file for source in program_files.sources),
            args=tuple(os.fsencode(arg) for arg in self._args),
            env=_environment(wanted["env"]),
            stdin=stdin.file if stdin else None,
            flags=_flags(self._text("flags")),
            version=self._version,
            limits=Limits(**limits),
            data=data.files if data else (),
            packs=data.packs if data else (),
            fetch=tuple(wanted["fetch"]),
        )
        return Submission(
            program=program,
            command=_command(self._file, self._args),
            on_host_loss=OnHostLoss(self._text("on_host_loss")),
            # An interactive run is nothing without who talks to it.
            on_disconnect=OnDisconnect.CANCEL if interactive else OnDisconnect(self._text("on_disconnect")),
            interactive=interactive,
            terminal=interactive and _is_terminal(0) and _is_terminal(1),
            wait_for_nodes=bool(wanted["detach"]),
            **fields,
        )


def _check_fetch(wanted: Mapping[str, Any]) -> None:
    """Before anything runs: the globs, and the folder."""
    from sshgrid.client import files
    from sshgrid.notation import globs

    globs.check(wanted["fetch"])
    into = wanted["into"]
    if into and not wanted["fetch"]:
        raise UsageError("--into says where fetched files go, and no --fetch says which", f"--fetch GLOB --into {into}")
    if into and wanted["detach"]:
        raise UsageError("-d does not wait for files", f"leave out --into; later: sshgrid attach ID --into {into}")
    files.check_inside(into)
    if files.exists(into) and not files.is_folder(into):
        raise UsageError(f"--into: {into} is no folder", f"ls -l {into}")


def language_and_version(text: str) -> tuple[str, str]:
    """("java", ">=17") of `--lang "java>=17"`."""
    match = _LANG.fullmatch(text.strip())
    if text and match is None:
        raise UsageError(f"--lang: not a language: {text!r}", 'write it as java or "java>=17"')
    return (match[1], (match[2] or "").replace(" ", "")) if match and text else ("", "")


def _environment(words: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    found: dict[str, bytes] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not _ENV_NAME.fullmatch(name):
            raise UsageError(f"--env: not a variable's name: {name!r}", "--env NAME=VALUE")
        if not equals and name not in os.environ:
            raise UsageError(f"--env: {name} is not set here", f"--env {name}=VALUE")
        found[name] = os.fsencode(value if equals else os.environ[name])
    return tuple(found.items())


def _flags(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--flags: {error}", "quote it once: --flags '-O3 -DNAME=\"a b\"'") from error


def _command(file: str, args: Sequence[str]) -> str:
    """As typed, for `ps`; it is only shown, and nobody reads more of it than this."""
    words = [file, *args]
    if all(word and _PLAIN.issuperset(word) for word in words):
        text = " ".join(words)
    else:
        import shlex

        text = os.fsencode(shlex.join(words)).decode("utf-8", "backslashreplace")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def submit(
    session: Session, submission: Submission, sources: Sequence[Source], key: str = ""
) -> tuple[Connection, JobId]:
    """Durable when it returns. A master that leaves meanwhile is started again: the same key is the same job."""
    key = key or new_key()
    for again in range(SUBMIT_TRIES):
        connection = session.connect()
        try:
            job = _send(session, connection, submission, sources, key)
            session.accepted.append(job)
            return connection, job
        except MasterGone:
            connection.close()
            if again + 1 == SUBMIT_TRIES:
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError("the last try returns or raises")


def new_key() -> str:
    """For a job that was never submitted before."""
    return os.urandom(16).hex()


def _send(
    session: Session, connection: Connection, submission: Submission, sources: Sequence[Source], key: str
) -> JobId:
    from sshgrid.client.program import upload
    from sshgrid.protocol.messages import Accepted, Submit

    upload(connection, sources, _transfer(session, sources))
    connection.send(Submit(submission, key))
    import sshgrid.client.follow  # noqa: F401 - wanted next, and the master is busy with this job now

    return connection.reply(Accepted).job


def _transfer(session: Session, sources: Sequence[Source]) -> TransferBar | None:
    """Where it is shown how far the files have come; None when that is soon over, or nobody looks."""
    from sshgrid.client.program import SHOWN_BYTES

    if not session.shows_notes() or all(source.file.size < SHOWN_BYTES for source in sources):
        return None
    from sshgrid.terminal.bar import TransferBar

    return TransferBar(session.err, shown=True)
