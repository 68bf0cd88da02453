"""The shell functions that a node gets (`remote/node.sh`, `remote/batch.sh`), and the script of first contact.

They become files of the node's working folder, named by their digest, as runs outlive the shell that started them.
"""

from __future__ import annotations

import hashlib
import secrets
import shlex
from collections.abc import Iterable
from importlib import resources

from sshgrid.model import Node

# The path of each file, in terms of the shell variable LIB.
_FILES = {b"$LIB": "node.sh", b"${LIB%/*}/batch${LIB##*/node}": "batch.sh"}


def read_script(name: str) -> bytes:
    """Return the text of a script in `remote/`."""
    return (resources.files("sshgrid") / "remote" / name).read_bytes()


_TEXTS = {path: read_script(name) for path, name in _FILES.items()}
_CONTACT = read_script("contact.sh")
_DIGEST = hashlib.sha256(b"".join(_TEXTS.values())).hexdigest()[:12]
LIBRARY_NAME = f"node-{_DIGEST}.sh"
# A shell runs one of these to define the functions.
LOAD = b'umask 077\n. "$LIB"\n'
LOAD_ALL = LOAD + b"".join(b'. "%s"\n' % path for path in list(_FILES)[1:])


def contact_script(node: Node, tools: Iterable[str]) -> bytes:
    """Return the script of first contact, which prints what `parsers.parse_contact` reads."""
    words = shlex.join((node.workdir.replace("{name}", node.name), LIBRARY_NAME, *tools)).encode()
    return b"set -- " + words + b"\n" + _CONTACT


def install_script() -> bytes:
    """Return a script that writes missing files and loads the functions; its status is 1 when it cannot write."""
    steps = [_put_file(path, text) + b"then\n" for path, text in _TEXTS.items()]
    return b"".join(b"if " + step for step in steps) + LOAD_ALL + b"else\nfalse\nfi\n" * len(steps)


def _put_file(path: bytes, text: bytes) -> bytes:
    """Return a command that writes a file. It also compares the size: after a power cut a file may be empty."""
    mark = b"LIBRARY-" + secrets.token_hex(8).encode()
    return (
        b'[ "$(wc -c <"%(path)s")" -eq %(size)d ] || { cat >"%(path)s.$$" && mv -f "%(path)s.$$" "%(path)s"; } '
        b"<<'%(mark)s'\n%(text)s%(mark)s\n"
    ) % {b"path": path, b"size": len(text), b"mark": mark, b"text": text}
