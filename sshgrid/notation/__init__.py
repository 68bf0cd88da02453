"""Parsers for what users type: selectors, globs, quantities and file names."""
