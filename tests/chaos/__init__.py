"""The chaos run: many jobs on real hosts while hosts, networks, clients and masters fail, and a checker."""
