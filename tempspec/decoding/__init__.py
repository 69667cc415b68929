"""The decoding engine and the work list of an evaluation (floor 4)."""
