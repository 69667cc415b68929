"""YAML that this package writes and reads back, by libyaml where PyYAML was built with it (floor 0).

What a user wrote is read by PyYAML's own reader, which says where the text is wrong and survives any nesting.
"""

from collections.abc import Mapping
from typing import Any, cast

import yaml  # type: ignore[import-untyped]

__all__ = ["read_own_yaml", "write_own_yaml"]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_own_yaml(text: str) -> Any:
    """What a text of ours says.

    Raises:
        yaml.YAMLError: it was changed, and is no YAML any more.

    >>> read_own_yaml("a: [1, x]")
    {'a': [1, 'x']}
    """
    return yaml.load(text, Loader=_LOADER)  # a loader of the safe kind


def write_own_yaml(held: Mapping[str, Any]) -> str:
    """A text that reads back as a mapping, in its order.

    >>> read_own_yaml(write_own_yaml({"b": 1, "a": [None]}))
    {'b': 1, 'a': [None]}
    """
    return cast(str, yaml.dump(dict(held), Dumper=_DUMPER, sort_keys=False, allow_unicode=True))
