"""The version of sshgrid as a constant, because reading the metadata of the package takes 20 ms.

A test checks that it is equal to the version in pyproject.toml. Client and master compare their versions with it.
"""

VERSION = "0.1.0"
