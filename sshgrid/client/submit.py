"""From the options of `run` to an accepted job: build the submission, upload missing files, submit exactly once."""

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

SUBMIT_TRIES = 5  # how many masters may go away, one after the other, while a job is submitted
_LANG = re.compile(r"([A-Za-z0-9_+#.-]+?)\s*([<>=!~][<>=!~.,*\s0-9A-Za-z_+-]*)?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MAX_COMMAND = 4000  # characters of a command that are shown
# Characters that need no quoting in a shell, as in shlex.quote.
_UNQUOTED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")


class RunRequest:
    """The options of `run`, checked; makes the submission."""

    def __init__(self, file: str, args: Sequence[str], options: Mapping[str, Any]) -> None:
        self._file, self._args, self._options = file, args, options
        self._language, self._version = language_and_version(self._text("lang"))
        if options["interactive"] and (options["detach"] or options["stdin"] or file == "-"):
            raise UsageError("-I uses this terminal as standard input; it excludes -d, --stdin and a program from -")
        if options["fetch"] or options["into"]:
            _check_fetch(options)

    def _text(self, name: str) -> str:
        return str(self._options[name])

    def read(self, session: Session, *, offer_files: bool = True) -> tuple[ProgramFiles, Source | None, Data | None]:
        """Read the files. `offer_files`: a master on this machine may read large ones itself."""
        from sshgrid.client.program import our_stdin, read_program, read_stdin

        program = read_program(self._file, self._language, our_stdin(), self._text("main"))
        choice = self._text("stdin")
        if self._options["interactive"] or (self._file == "-" and not choice):
            choice = "none"
        if self._file == "-" and choice == "-":
            raise UsageError("standard input cannot be both the program and its input", "--stdin FILE")
        stdin = None if session.in_shell else our_stdin()
        if choice in ("", "-", "none") and not self._options["with"]:
            return program, read_stdin(choice, stdin, session.note), None
        from sshgrid.client.local_files import LocalFileOffer  # here, as most runs do not need it

        with LocalFileOffer(session, enabled=offer_files) as offer:
            data = self._data(offer)
            return program, read_stdin(choice, stdin, session.note, offer), data

    def _data(self, offer: LocalFileOffer) -> Data | None:
        """The files of --with; None without the option."""
        if not self._options["with"]:
            return None
        from sshgrid.client.data import read_data

        return read_data(self._options["with"], offer)

    def submission(self, program_files: ProgramFiles, stdin: Source | None, data: Data | None) -> Submission:
        """The submission for these files."""
        from sshgrid.model import Limits, OnDisconnect, OnHostLoss, Program, Submission

        options = self._options
        interactive = bool(options["interactive"])
        fields, limits = submission_fields(options)
        program = Program(
            # "" = the master chooses: the inventory may add or override languages.
            language=self._language or program_files.language,
            entry=program_files.entry,
            files=tuple(source.file for source in program_files.sources),
            args=tuple(os.fsencode(arg) for arg in self._args),
            env=_environment(options["env"]),
            stdin=stdin.file if stdin else None,
            flags=_flags(self._text("flags")),
            version=self._version,
            limits=Limits(**limits),
            data=data.files if data else (),
            packs=data.packs if data else (),
            fetch=tuple(options["fetch"]),
        )
        return Submission(
            program=program,
            command=_command(self._file, self._args),
            on_host_loss=OnHostLoss(self._text("on_host_loss")),
            # An interactive run cannot continue without its terminal.
            on_disconnect=OnDisconnect.CANCEL if interactive else OnDisconnect(self._text("on_disconnect")),
            interactive=interactive,
            terminal=interactive and _is_terminal(0) and _is_terminal(1),
            wait_for_nodes=bool(options["detach"]),
            **fields,
        )


def _check_fetch(options: Mapping[str, Any]) -> None:
    """UsageError when the globs or the folder cannot be used; checked before anything runs."""
    from sshgrid.client import files
    from sshgrid.notation import globs

    globs.check(options["fetch"])
    into = options["into"]
    if into and not options["fetch"]:
        raise UsageError(
            "--into is the folder for the files of --fetch, which is missing", f"--fetch GLOB --into {into}"
        )
    if into and options["detach"]:
        raise UsageError(
            "-d does not wait for files, so --into has no effect",
            f"leave out --into; later: sshgrid attach ID --into {into}",
        )
    files.check_inside(into)
    if files.exists(into) and not files.is_folder(into):
        raise UsageError(f"--into: {into} is not a folder", f"ls -l {into}")


def language_and_version(text: str) -> tuple[str, str]:
    """("java", ">=17") of `--lang "java>=17"`."""
    match = _LANG.fullmatch(text.strip())
    if text and match is None:
        raise UsageError(f"--lang: not a language: {text!r}", 'write it as java or "java>=17"')
    return (match[1], (match[2] or "").replace(" ", "")) if match and text else ("", "")


def _environment(settings: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    """The variables of --env. Raises UsageError."""
    found: dict[str, bytes] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not _ENV_NAME.fullmatch(name):
            raise UsageError(f"--env: not a variable name: {name!r}", "--env NAME=VALUE")
        if not equals and name not in os.environ:
            raise UsageError(f"--env: {name} is not set in this environment", f"--env {name}=VALUE")
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
    """The command line to show in `ps`, cut after _MAX_COMMAND characters."""
    argv = [file, *args]
    if all(each and _UNQUOTED.issuperset(each) for each in argv):
        text = " ".join(argv)
    else:
        import shlex

        text = os.fsencode(shlex.join(argv)).decode("utf-8", "backslashreplace")
    return text if len(text) <= _MAX_COMMAND else f"{text[:_MAX_COMMAND]}..."


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def submit(
    session: Session, submission: Submission, sources: Sequence[Source], key: str = ""
) -> tuple[Connection, JobId]:
    """Submit a job, which is durable on return. When the master goes away, try again: the same key is the same job."""
    key = key or new_key()
    for attempt in range(SUBMIT_TRIES):
        connection = session.connect()
        try:
            job = _send(session, connection, submission, sources, key)
            session.accepted.append(job)
            return connection, job
        except MasterGone:
            connection.close()
            if attempt + 1 == SUBMIT_TRIES:
                raise
        except BaseException:
            connection.close()
            raise
    raise AssertionError("the last try returns or raises")


def new_key() -> str:
    """A key for a new job."""
    return os.urandom(16).hex()


def _send(
    session: Session, connection: Connection, submission: Submission, sources: Sequence[Source], key: str
) -> JobId:
    from sshgrid.client.program import upload
    from sshgrid.protocol.messages import Accepted, Submit

    upload(connection, sources, _transfer_bar(session, sources))
    connection.send(Submit(submission, key))
    import sshgrid.client.follow  # noqa: F401 - needed next; import it while the master works

    return connection.reply(Accepted).job


def _transfer_bar(session: Session, sources: Sequence[Source]) -> TransferBar | None:
    """The progress bar of an upload; None for small files and without a terminal."""
    from sshgrid.client.program import PROGRESS_BYTES

    if not session.shows_notes() or all(source.file.size < PROGRESS_BYTES for source in sources):
        return None
    from sshgrid.terminal.bar import TransferBar

    return TransferBar(session.err, shown=True)
