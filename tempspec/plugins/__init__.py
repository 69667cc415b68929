"""Built-in plugins, one family a file: each is a core function plus remembered options (floor 3)."""
