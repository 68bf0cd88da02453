"""Which job starts next and on which node; attempts, batches and sweeps in progress."""
