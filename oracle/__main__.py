"""python -m oracle vectors                write vectors/step.json and vectors/energy.json
python -m oracle check results.json     judge results computed from those vectors in any language"""

import sys

from oracle.check import check, read_results
from oracle.vectors import write_vectors

USAGE = "usage: python -m oracle vectors | check results.json"


def main(arguments):
    """Exit code: 0 done or all passed, 1 a failure or a missing id, 2 bad usage or unreadable input."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        if arguments == ["vectors"]:
            write_vectors()
            return 0
        if len(arguments) == 2 and arguments[0] == "check":
            return 0 if check(read_results(arguments[1])) else 1
    except (OSError, ValueError) as error:
        print(f"oracle: {error}", file=sys.stderr)
        return 2
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
