"""What the command line, the shell and the monitor share: connections to a master, submitting and following jobs."""
