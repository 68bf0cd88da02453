"""Printing to terminals and pipes: tables, progress bars, styles and escaped text."""
