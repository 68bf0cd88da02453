"""`python -m sshgrid.daemon INVENTORY STATE_DIR [IDLE_EXIT]`: the master that a command starts when none is running.

The same as `sshgrid master start --foreground`, but without the command line and with a quicker start, as a command
waits for it. An error is printed as the command line prints it.
"""
# os.path, not pathlib (see per-file-ignores): a command waits for this start.

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sshgrid.daemon import IDLE_EXIT, idle_seconds


def main(args: Sequence[str]) -> int:
    """Serve until stopped; return the exit status. An error is on stderr, where the starting command reads it."""
    from sshgrid.errors import SshgridError

    inventory, state_dir, *rest = args
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
    """Import without garbage collection, as almost nothing is garbage, and without starting a compiler."""
    import ctypes.util
    import gc

    # asyncssh looks for liboqs. find_library runs gcc and ld for a library that ldconfig does not list.
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
