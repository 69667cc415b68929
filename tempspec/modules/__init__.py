"""LightningModules and callbacks (floor 5)."""
