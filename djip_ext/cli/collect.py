"""``djip collect``: the records of finished runs as a few files to keep beside a paper."""

import argparse

from djip_ext.experiments.runs import collect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip collect``."""
    parser.add_argument(
        "runs",
        metavar="RUNS",
        help="a folder of runs (result.json, log.csv), e.g. output/fewshot13",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="gets runs.csv, curves.csv, configs/ and lenses/, beside the runs it holds already; "
        "djip report and djip compare read it as they read RUNS",
    )


def run(args: argparse.Namespace) -> None:
    """Collect the runs.

    Raises:
        DJIPError: no finished run, or a damaged record.
    """
    count, total = collect(args.runs, args.folder)
    print(
        f"{count} runs collected in {args.folder}, which holds {total}; "
        f"djip report {args.folder} makes their report"
    )
