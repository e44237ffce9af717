"""SimCLR in one command: learn from images without labels, then show what was learned.

    python simclr_train.py            # CIFAR-10, which is fetched
    python simclr_train.py PATH       # images of your own

The stages, pretrain, embed, probe, draw and report, stand in a row in `crlf.pipelines.images_to_report.run`; `crlf run`
is the same.
"""

from __future__ import annotations

import sys

from crlf.cli import command_line

if __name__ == "__main__":
    sys.exit(command_line("run"))
