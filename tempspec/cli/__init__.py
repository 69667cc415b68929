"""Subcommands: parse, build, call (floor 6)."""
