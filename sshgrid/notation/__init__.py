"""How people write selectors, globs, quantities and file names."""
