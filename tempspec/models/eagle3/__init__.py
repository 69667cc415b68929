"""EAGLE-3: network, files of both formats, and what is wrong in a folder. Imports no transformers (floor 3)."""

from tempspec.models.eagle3.config import Eagle3Config
from tempspec.models.eagle3.network import Eagle3Model
from tempspec.models.eagle3.plugin import Eagle3

__all__ = ["Eagle3", "Eagle3Config", "Eagle3Model"]
