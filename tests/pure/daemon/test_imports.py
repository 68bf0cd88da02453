"""A master starts without the libraries that read YAML, because the first `run` waits for its start."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import sshgrid.daemon.server
print(sorted({"pydantic", "yaml", "prompt_toolkit", "click"} & set(sys.modules)))
"""


def test_a_starting_master_imports_no_yaml_and_no_command_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
