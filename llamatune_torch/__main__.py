"""``python -m llamatune_torch``: the command line, where ``llamatune`` is not on the path."""

import sys

from llamatune_torch.cli.main import main

if __name__ == "__main__":  # a trial's process imports this too
    sys.exit(main())
