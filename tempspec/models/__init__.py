"""Loading a pair of causal language models and the ragged key-value cache (floor 3)."""
