"""`sshgrid inventory edit` at a real terminal: errors are shown at once, and the user can edit again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.whole.grid import LocalGrid
from tests.whole.tmux import Tmux

# Replaces the content of the file with the next version.
EDITOR = """#!/bin/sh
number=$(ls version.* | head -n 1)
cat "$number" >"$1"
rm "$number"
"""
GOOD = "version: 1\nnodes:\n  here: {connection: local}\n  two: {connection: local}\n"


@pytest.mark.parametrize("again", [True, False])
def test_after_an_error_the_file_is_edited_again_or_left_unchanged(tmp_path: Path, again: bool) -> None:
    grid = LocalGrid(tmp_path)
    before = grid.inventory.read_text()
    grid.write("version.1", GOOD.replace("two: {connection", "two: {connexion"))
    grid.write("version.2", GOOD)
    editor = grid.write("editor", EDITOR)
    editor.chmod(0o755)
    words = [str(word) for word in grid.argv("inventory", "edit")]
    with Tmux(grid.folder, words, {**grid.environ, "EDITOR": str(editor)}, 100, 24) as tmux:
        tmux.see("did you mean 'connection'?")
        tmux.see("Edit it again? [y/N]")
        tmux.type("y" if again else "n", "Enter")
        assert (tmux.status() == 0) is again
    assert grid.inventory.read_text() == (GOOD if again else before)
