"""The options of `run` that are understood without click."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SESSION_TEXTS = {"--master": "master", "-i": "inventory", "--inventory": "inventory"}


SESSION_FLAGS = {"--json": "json", "-q": "quiet", "--quiet": "quiet", "--no-input": "no_input"}


TEXTS = {
    "--on": "on",
    "--lang": "lang",
    "--stdin": "stdin",
    "--name": "name",
    "--flags": "flags",
    "--into": "into",
    "--main": "main",
}


FLAGS = {
    "-d": "detach",
    "--detach": "detach",
    "-I": "interactive",
    "--interactive": "interactive",
    "--show-node": "show_node",
    "--dry-run": "dry_run",
    "--verify-build": "verify_build",
}


MANY = {"--env": "env", "--with": "with", "--fetch": "fetch"}


# What `run` is told of an option that is not there; also of those that are not understood here.
OTHERWISE: Mapping[str, Any] = {
    **dict.fromkeys(TEXTS.values(), ""),
    **dict.fromkeys(FLAGS.values(), False),
    **dict.fromkeys(MANY.values(), ()),
    "time_limit": None,
    "memory": None,
    "max_processes": None,
    "keep_children": False,
    "slots": 1,
    "gpu": 0,
    "retries": None,
    "priority": 0,
    "on_host_loss": "relaunch",
    "on_disconnect": "keep",
}
