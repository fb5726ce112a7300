"""Make the table of docs/parity.md: each form of clipping, elsewhere and here, by running ours.

    python docs/make_parity_table.py            # prints it
    python docs/make_parity_table.py --write    # puts it into docs/parity.md

What the other libraries gave is recorded in tests/recorded.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from forms import Case  # noqa: E402
from marked import put  # noqa: E402
from test_parity_of_forms import CASES  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
MARK = "<!-- parity table: made by docs/make_parity_table.py -->"
FORMS = {
    "norm": "norm of each tensor",
    "value": "value of each element",
    "global_norm": "norm of all together",
    "rms": "root mean square",
    "adaptive": "against the parameter",
    "per_sample_norm": "each sample, each tensor",
    "per_sample_global_norm": "each sample, all together",
}


def table() -> str:
    """The table as running gives it."""
    lines = ["| form | there | here | cases | largest difference |", "|---|---|---|---|---|"]
    for form, words in FORMS.items():
        for library in sorted({case.library for case in CASES if case.form == form}):
            found = [case for case in CASES if (case.form, case.library) == (form, library)]
            worst = max(max(c.difference(c.by_graph()), c.difference(c.by_apply())) for c in found)
            first = found[0]
            lines.append(
                f"| {words} | `{first.call}` | `{_ours(first)}` | {len(found)} | {worst:.0e} |"
            )
    return "\n".join(lines)


def _ours(case: Case) -> str:
    return case.ours.replace(", group_name='default_group'", "")


if __name__ == "__main__":
    made = table()
    print(made)
    if "--write" in sys.argv[1:]:
        put(PAGE, MARK, made)
