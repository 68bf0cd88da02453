"""Server: one client's session with the master, over any byte stream: framing, authorization, uploads, answers."""
