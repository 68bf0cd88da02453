"""Pure parts of sweeps: parameters, templates, halt rules, runtime estimates, chunking and speculation."""
