"""Runs the command line for `python -m sshgrid`."""

from sshgrid.cli import main

if __name__ == "__main__":
    main()
