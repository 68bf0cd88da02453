"""One client's session with the master."""
