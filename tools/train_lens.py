"""`djip fit` as a script; see djip_ext/cli/train_lens.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from djip_ext.cli.main import main  # noqa: E402

main(["fit", *sys.argv[1:]])
