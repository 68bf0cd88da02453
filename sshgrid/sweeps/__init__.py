"""Pure parts of sweeps: parameters, templates, halt rules and estimates."""
