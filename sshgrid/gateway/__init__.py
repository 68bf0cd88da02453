"""SSH gateway: an SSH server that authenticates users and gives them commands, files and the protocol over channels."""
