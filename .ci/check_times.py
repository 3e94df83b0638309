"""Hold the times that the README claims against those just measured. `python .ci/check_times.py demo=131 tests=262 installing=80`

Seconds. The README speaks of two cores of an AMD EPYC: a claim may be off by FACTOR there, either way (less for installing,
which a cache of packages shortens); on another machine both are only shown.
"""

import os
import re
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
FACTOR = 3.0  # such machines vary by two from hour to hour
CLAIM = re.compile(
    r"On two cores of an AMD EPYC the demo takes ([\d.]+) minutes and the tests take ([\d.]+), after about ([\d.]+) minutes of "
    r"installing\."
)


def claimed() -> dict[str, float]:
    """Seconds, by what takes them."""
    found = CLAIM.search(" ".join(README.read_text("utf-8").split()))
    if found is None:
        raise SystemExit("the README no longer says how long the demo, the tests and installing take in the words of CLAIM")
    return {name: 60 * float(minutes) for name, minutes in zip(("demo", "tests", "installing"), found.groups(), strict=True)}


def too_far(name: str, said: float, took: float) -> bool:
    return took > FACTOR * said or (name != "installing" and took < said / FACTOR)


def main() -> None:
    measured = {name: float(seconds) for name, _, seconds in (word.partition("=") for word in sys.argv[1:])}
    facts = Path("/proc/cpuinfo")
    described = len(os.sched_getaffinity(0)) == 2 and facts.exists() and "AMD EPYC" in facts.read_text()
    wrong = []
    for name, said in claimed().items():
        print(f"{name}: {measured[name]:.0f} s; the README says {said:.0f} s")
        wrong += [name] if too_far(name, said, measured[name]) else []
    if not described:
        print("this is not two cores of an AMD EPYC: not compared")
    elif wrong:
        raise SystemExit(f"off by more than {FACTOR:g}: {', '.join(wrong)}; put right README.md")


if __name__ == "__main__":
    main()
