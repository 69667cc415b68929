"""What this package itself registers, whatever else is installed beside it."""

from tempspec import registry


def built_in(family):
    """The built-in plugins of a family: their names, with their classes."""
    plugins = registry.load()
    return {one.name: one.cls for one in plugins if (one.family, one.distribution) == (family, "tempspec")}
