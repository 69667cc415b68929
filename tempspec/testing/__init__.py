"""The conformance kit for plugins of every family (floor 3)."""
