"""Nodes made of nothing but a shell, one for each shell and each way to keep a run's processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.edge.shells import ShellNode, missing_shell

KINDS = ("dash-session", "dash-pidns", "bash-session", "bash-pidns", "posix-session", "posix-pidns", "busybox-session")


def make_node(kind: str, folder: Path, workdir: Path | None = None) -> ShellNode:
    shell, _, isolation = kind.partition("-")
    if reason := missing_shell(shell):
        pytest.skip(reason)
    try:
        return ShellNode(folder, shell, isolation, workdir)
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture(params=KINDS)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ShellNode]:
    """A node of each kind; at the end no process and no file of a run may be left after `clean`."""
    made = make_node(request.param, tmp_path / "node")
    yield made
    made.end()


@pytest.fixture
def node_of(tmp_path: Path) -> Iterator[Callable[..., ShellNode]]:
    """`node_of("dash-session")`: a node of one kind."""
    made: list[ShellNode] = []

    def make(kind: str, workdir: Path | None = None) -> ShellNode:
        made.append(make_node(kind, tmp_path / f"node{len(made)}", workdir))
        return made[-1]

    yield make
    for node in made:
        node.end()
