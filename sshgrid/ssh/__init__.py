"""Connections to nodes: login, shells, transfers, and parsers of what nodes print."""
