"""Runs programs on a cluster of machines that need nothing but an SSH server."""
