"""The durable queue: jobs, attempts and verdicts in one SQLite file."""
