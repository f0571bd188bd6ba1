"""The former name of :mod:`djip_ext.cli`."""
