"""`python -m sshgrid`: the command line."""

from sshgrid.cli import main

if __name__ == "__main__":
    main()
