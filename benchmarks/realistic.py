"""What a real job costs besides its models: padding, busy slots, encoding, memory of rows.

    OMP_NUM_THREADS=1 python benchmarks/realistic.py
    OMP_NUM_THREADS=1 python benchmarks/realistic.py --assets FOLDER

Synthetic conversations of realistic lengths; no model but tiny ones. Where FOLDER holds `smollm2/`, the same is
measured of SmolLM2-135M-Instruct with its own tokenizer and chat template. Every part is a file of its own beside this
one. `pytest tests/modules/fit/test_memory.py` holds `fit --estimate` to what fits of tiny models take.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from goals import finish, parse
from realistic_encoding import encoding
from realistic_padding import padding
from realistic_smollm2 import NEEDS, smollm2
from realistic_store import busy_share, store_memory


def main() -> None:
    """Measure every part, print its figures, and last the goals."""
    options = parse(ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter), NEEDS)
    parts = (padding, encoding, store_memory, busy_share)
    goals = [goal for part in parts for goal in part(options.quick)]
    finish(goals + smollm2(options.assets, options.quick))


if __name__ == "__main__":
    main()
