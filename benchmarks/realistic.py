"""What a real job costs besides its models: padding, busy slots, encoding, memory of rows.

    OMP_NUM_THREADS=1 python benchmarks/realistic.py

Synthetic conversations of realistic lengths; no model but tiny ones. Every part is a file of its own beside this one.
`pytest tests/modules/fit/test_memory.py` holds `fit --estimate` to what a fit takes.
"""

from argparse import ArgumentParser

from goals import finish, parse
from realistic_encoding import encoding
from realistic_padding import padding
from realistic_store import busy_share, store_memory


def main() -> None:
    """Measure every part, print its figures, and last the goals."""
    quick = parse(ArgumentParser(description=__doc__)).quick
    parts = (padding, encoding, store_memory, busy_share)
    finish([goal for part in parts for goal in part(quick)])


if __name__ == "__main__":
    main()
