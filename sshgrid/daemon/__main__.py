"""`python -m sshgrid.daemon INVENTORY STATE_DIR [IDLE_EXIT]`: the master as `run` starts it when there is none.

The same as `sshgrid master start --foreground`, without the command line, and with what makes it be there sooner: a
person waits for it. Refuses nothing itself; what is wrong is printed as the command line would print it.
"""
# os.path, not pathlib (see per-file-ignores): a person waits for this start.

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sshgrid.daemon import IDLE_EXIT, idle_seconds


def main(words: Sequence[str]) -> int:
    """The exit status. What was wrong is on stderr, where whoever started this looks for it."""
    from sshgrid.errors import SshgridError

    inventory, state_dir, *rest = words
    try:
        return _serve(inventory, state_dir, rest[0] if rest else IDLE_EXIT)
    except SshgridError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_status


def _serve(inventory: str, state_dir: str, idle_exit: str) -> int:
    from sshgrid import paths
    from sshgrid.gateway import address

    home = os.environ.get("HOME") or os.path.expanduser("~")
    places = paths.places(inventory, os.environ, os.getcwd(), home, state_flag=state_dir)
    with _quick_imports():
        from sshgrid.daemon import server
    return server.run(places, idle_seconds(idle_exit), address.load(state_dir))


@contextmanager
def _quick_imports() -> Iterator[None]:
    """A hundred thousand objects are made and none of them is garbage; and no compiler is started on the way."""
    import ctypes.util
    import gc

    # asyncssh asks for liboqs. What ldconfig does not know would be searched for with gcc and ld, each time in vain.
    search = ctypes.util.find_library
    ctypes.util.find_library = getattr(ctypes.util, "_findSoname_ldconfig", search)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        ctypes.util.find_library = search


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
