"""Benchmarks of sshgrid and of other tools, on a lab of real SSH hosts."""
