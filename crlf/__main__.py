"""`python -m crlf` is the command `crlf`."""

import sys

from crlf.cli import main

if __name__ == "__main__":
    sys.exit(main())
