"""Sections of a report, one file per stage (floor 5)."""
