"""Sections of a report, one file a stage (floor 5)."""
