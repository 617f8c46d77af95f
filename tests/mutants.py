"""What `make mutants` found: `mutmut results --all true` on standard input, a table of modules on standard output.

A mutant that outlasts its time was noticed like one that fails a test. The exit code is 1 where a module is below
AT_LEAST.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict

AT_LEAST = 0.80
_LINE = re.compile(r"\s*(?P<mutant>(?P<module>resnet_dist\.\w+\.\w+)\.\S+): (?P<outcome>.+)")


def main() -> int:
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    unnoticed: list[str] = []
    for found in filter(None, map(_LINE.match, sys.stdin)):
        outcomes[found["module"]][found["outcome"]] += 1
        if found["outcome"] not in ("killed", "timeout"):
            unnoticed.append(f"{found['mutant']}: {found['outcome']}")
    print("Mutants that no test noticed (mutmut show NAME prints the change):", *sorted(unnoticed), sep="\n    ")
    print("\n| module | mutants | killed | timeout | survived | other | noticed |\n|---|---|---|---|---|---|---|")
    shares = []
    for module, counts in sorted(outcomes.items()):
        total, killed, late, survived = counts.total(), counts["killed"], counts["timeout"], counts["survived"]
        shares.append((killed + late) / total)
        columns = (module, total, killed, late, survived, total - killed - late - survived, f"{shares[-1]:.1%}")
        print("|", " | ".join(map(str, columns)), "|")
    return 0 if shares and min(shares) >= AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
