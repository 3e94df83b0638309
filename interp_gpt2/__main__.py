"""`python -m interp_gpt2` is `interp-gpt2`."""

import sys

from interp_gpt2.cli import main

if __name__ == "__main__":  # a process that sweeps or trains beside this one imports this file too
    sys.exit(main())
