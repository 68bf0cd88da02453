"""Plan a sweep, submit it, follow it, and record its results."""
