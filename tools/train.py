"""`djip train` as a script; see djip_ext/cli/train.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from djip_ext.cli.main import main  # noqa: E402

# The workers of a loader import this file again where processes are spawned.
if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
