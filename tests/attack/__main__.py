# SPDX-License-Identifier: GPL-3.0-or-later
"""`make attack`: the attacks one after the other, and what came of each. Exit status 1 if anything did not hold.

make attack                                  all of it, some 20 minutes
make attack ARGS="--minutes 1 kills fuzz"    these two, fuzzing for a minute
"""

import argparse
import json
import random
import sys
from collections.abc import Callable

from tests.attack import faults, fuzz
from tests.attack.report import Result


def main() -> int:
    """Run the attacks; the exit status."""
    arguments = _arguments()
    rng = random.Random(arguments.seed)
    attacks: dict[str, Callable[[Result], None]] = {
        "kills": lambda result: faults.kills(result, arguments.kills, rng),
        "parent": lambda result: faults.parent_kills(result, 10),
        "reloads": lambda result: faults.reloads(result, arguments.reloads),
        "stores": lambda result: faults.stores(result, 5.0),
        "dns": lambda result: faults.dns(result, 10.0),
        "logs": lambda result: faults.logs(result, 20_000),
        "fuzz": lambda result: fuzz.fuzz(result, arguments.minutes, arguments.seed),
    }
    unknown = set(arguments.attacks) - attacks.keys()
    if unknown:
        print(f"there is no attack {', '.join(sorted(unknown))}; there are {', '.join(attacks)}", file=sys.stderr)
        return 2
    results = []
    for name in arguments.attacks or attacks:
        result = Result(name)
        try:
            attacks[name](result)
        except (AssertionError, OSError) as error:
            result.findings.append(f"could not go on: {error}")
        results.append(result)
        print("\n".join(result.lines()), flush=True)
    asked = sum(result.policy.asked + result.milter.asked for result in results)
    wrong = sum(result.policy.wrong_count + result.milter.wrong_count for result in results)
    print(f"\n{asked} requests and messages of honest clients, {wrong} wrong answers; seed {arguments.seed}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([result.as_json() for result in results], file, indent=1)
    return 1 if any(result.findings for result in results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make attack", description=__doc__.splitlines()[0])
    parser.add_argument("attacks", nargs="*", help="kills, parent, reloads, stores, dns, logs, fuzz; default: all")
    parser.add_argument("--kills", type=int, default=100, help="how many workers are killed")
    parser.add_argument("--reloads", type=int, default=171, help="how often the service reloads")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long both protocols are fuzzed")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="to have the same attack again")
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
