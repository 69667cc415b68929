"""What `tempspec validate` and `test` do: acceptance without decoding (floor 5)."""
