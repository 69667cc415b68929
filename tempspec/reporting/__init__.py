"""Tables and figures (floor 5)."""
