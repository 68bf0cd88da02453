"""Protocol: the messages between a client and the master, and how they are encoded."""
