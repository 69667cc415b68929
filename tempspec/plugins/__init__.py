"""Built-in plugins, each family in files of its own: each is a core function plus remembered options (floor 3)."""
