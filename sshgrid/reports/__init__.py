"""What people see of jobs, sweeps and nodes."""
