"""tempspec: train the draft for the temperature you serve at, and know what you gain at every temperature.

Importing this package is cheap: torch, Lightning and transformers are imported by the parts that need them.
"""

__version__ = "0.1.0"
