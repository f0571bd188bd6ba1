"""``python -m djip_ext COMMAND``: the same as ``djip COMMAND``."""

from djip_ext.cli.main import main

if __name__ == "__main__":
    main()
