"""The former name of :mod:`djip_ext.cli.main`; scripts that call it go on working."""

from djip_ext.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
