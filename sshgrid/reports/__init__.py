"""Reports: jobs, sweeps and nodes as users see them, as lists, as lines and as they change."""
