"""The version of sshgrid, where the command line can read it without looking at package metadata (which costs 20 ms).

A test holds it equal to pyproject.toml. A client and a master of different versions notice each other by it.
"""

VERSION = "0.1.0"
