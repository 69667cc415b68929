"""A package that cannot be imported."""

raise ImportError("tempspec_broken was built for another torch")
