"""Try random clips: `python tests/random_clips 300`, or `--seed 17` for one of them."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # where the tests find their modules

from random_clips import newest_opset, tried


def main() -> int:
    """Print each fault and the counts; 1 if there is any fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=300, help="seeds from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="this one alone, and what it is")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    counts: Counter[str] = Counter()
    newest = newest_opset()
    for seed in seeds if options.seed is None else [options.seed]:
        words, faults = tried(seed, newest)
        verdict = "right" if not faults else "refused" if faults == ["refused"] else "wrong"
        counts[verdict] += 1
        if verdict == "wrong" or options.seed is not None:
            print("\n  ".join([words, *faults]), flush=True)
    print(f"opsets 7 to {newest}:", dict(counts))
    return int(counts["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
