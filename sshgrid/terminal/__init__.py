"""Rendering for terminals: tables, bars, escapes."""
