"""The program kvaq that the wheel holds: `kvaq ...` and `python -m kvaq ...`."""

import os
import sys

from kvaq._library import Error, prefixes


def main() -> None:
    programs = [prefix / "bin/kvaq" for prefix in prefixes()[:1]]
    for program in programs:
        if program.is_file():
            os.execv(program, [str(program), *sys.argv[1:]])
    sys.exit(f"kvaq: error: {Error(f'the program is not there: wanted {programs[0]}. Install the wheel, or set KVAQ_PREFIX')}")


if __name__ == "__main__":
    main()
