"""The commands of ``djip``; each module offers ``add_arguments(parser)`` and ``run(args)``."""
