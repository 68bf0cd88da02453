"""Which job starts next and where; attempts, batches and sweeps in progress."""
