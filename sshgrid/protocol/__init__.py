"""Messages between clients and the master, and their encoding."""
