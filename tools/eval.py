"""`djip eval` as a script; see djip_ext/cli/evaluate.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from djip_ext.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
