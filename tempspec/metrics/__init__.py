"""Torchmetrics over the engine's counts, with intervals over prompts (floor 4)."""
