"""The SSH gateway: an SSH server through which users reach the master."""
