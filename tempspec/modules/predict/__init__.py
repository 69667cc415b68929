"""What `tempspec predict` and `generate` do: passes of decoding, and rows on disk (floor 5)."""
