"""Training, comparing and serving classifiers on a converted data set. Files here are commands, folders rooms."""

import sys

from trainer.shell import extras

if _lacking := extras.lacking(sys.orig_argv):
    # here, since every command imports what is missing before its first line runs
    print(_lacking, file=sys.stderr)
    sys.exit(2)
