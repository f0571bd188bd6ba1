"""A table of results as text: Markdown to read, LaTeX to print."""

from collections.abc import Callable, Sequence
from typing import Any

import yaml

from djip_ext.experiments.axes import axes_of, split
from djip_ext.experiments.differences import Row, mean_difference
from djip_ext.experiments.records import Result, Results, all_results
from djip_ext.experiments.runs import Pair
from djip_ext.experiments.statistics import KEYS, Summary

TITLES = {"last_acc": "last epoch", "best_acc": "best epoch"}
MEAN_OF_ALL = "mean of all"


def pair_table(
    rows: Sequence[Row], results: Results, pair: Pair, arms: Sequence[str], key: str
) -> list[list[str]]:
    """Header and lines of the table of one pair.

    A line per row (a distiller, with the values of the table's axes): for each arm mean ± spread,
    and the paired difference to the baseline ± half of its interval.

    Args:
        rows: of :func:`~djip_ext.experiments.differences.table_rows`.
        arms: the baseline first.
        key: "last_acc" or "best_acc".
    """
    baseline, *others = arms
    cells = results[pair]
    axes = axes_of(cells)
    differences = [f"{arm} − {baseline}" for arm in others]
    header = ["distiller", *axes, "n", *arms, *differences, "published"]
    lines = []
    for name in cells:
        distiller, values = split(name)
        columns = {axis: values.get(axis, "") for axis in axes}
        place = {**vars(pair), "distiller": distiller, **columns}
        own = {row["arm"]: row for row in rows if place.items() <= row.items()}
        lines.append([distiller, *map(str, columns.values()), *_pair_line(own, arms, key)])
    means = [mean_difference(cells, arm, baseline, key) for arm in others]
    if any(means) and not axes:  # values of an axis are there to be compared, not to be averaged
        lines.append([MEAN_OF_ALL, "", *("" for _ in arms), *map(_summary, means), ""])
    return [header, *lines]


def _pair_line(own: dict[str, Row], arms: Sequence[str], key: str) -> list[str]:
    """Number of seeds, accuracies, differences and published number of the rows ``own``, by arm."""
    counts = sorted({own[arm]["n"] if arm in own else 0 for arm in arms})
    ends = dict.fromkeys((counts[0], counts[-1]))
    accuracies = [
        _plus_minus(own[arm][key], own[arm][f"{key}_sd"]) if arm in own else "" for arm in arms
    ]
    differences = [
        _plus_minus(own[arm][f"{key}_diff"], own[arm][f"{key}_ci95"], "+") if arm in own else ""
        for arm in arms[1:]
    ]
    known = [own[arm] for arm in arms if arm in own]
    return [" to ".join(map(str, ends)), *accuracies, *differences, _published(known)]


def _published(rows: Sequence[Row]) -> str:
    numbers = [f"{row['published']:.2f}" for row in rows if row["published"] != ""]
    if numbers:
        return " → ".join(numbers)
    for row in rows:
        if count := row["published_pairs"]:
            pairs = "pair" if count == 1 else "pairs"
            return f"{row['published_gain_elsewhere']:+.2f} on {count} other {pairs}"
    return ""


def _plus_minus(value: Any, spread: Any, sign: str = "") -> str:
    if value == "":
        return ""
    return f"{value:{sign}.2f}" + (f" ± {spread:.2f}" if spread != "" else "")


def _summary(mean: Summary | None) -> str:
    if mean is None:
        return ""
    return f"{mean.mean:+.2f}" + (f" ± {mean.half_width:.2f}" if mean.n > 1 else "")


def markdown_report(
    title: str,
    rows: Sequence[Row],
    results: Results,
    arms: Sequence[str],
    planned: int | None,
    unasked: int,
    pictures: Sequence[str],
    lenses: str,
) -> str:
    """The whole report: what ran, the tables of every pair, how to read them, pictures, lenses.

    Args:
        planned: students that the table plans, None when only records are known.
        unasked: students among ``results`` that it does not plan.
        pictures: file names beside the report.
        lenses: of :func:`~djip_ext.experiments.lenses.lens_section`.
    """
    parts = [f"# {title}", _what_ran(results, planned, unasked)]
    for pair in results:
        for key in KEYS:
            table = markdown_table(pair_table(rows, results, pair, arms, key))
            parts += [f"## {pair}, {TITLES[key]}", table]
    parts += _explanation(rows, results, arms)
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join([*parts, lenses]).rstrip() + "\n"


def _explanation(rows: Sequence[Row], results: Results, arms: Sequence[str]) -> list[str]:
    """How to read the tables, and where the published numbers come from."""
    explanation = (
        f"Accuracy on {_measured_on(results)} in %, mean ± standard deviation over n seeds; "
        f"differences to {arms[0]} in points, paired by seed, ± half of the 95 % t-interval."
    )
    if _has_means(results, arms):
        explanation += (
            f" *{MEAN_OF_ALL}* averages the differences of all distillers for each seed first; "
            "its interval is over seeds."
        )
    parts = [explanation]
    if any(row["published_pairs"] for row in rows):
        parts.append(
            "Where this pair has no published number, the published gain by DJIP on other pairs "
            "stands there, their mean (djip_ext/experiments/published.csv)."
        )
    named = (row["published_source"] for row in rows if row["published_source"])
    sources = "; ".join(dict.fromkeys(named))
    if sources:
        parts.append(f"Published: {sources}: 240 epochs on all of CIFAR-100, 100 on ImageNet.")
    return parts


def _measured_on(results: Results) -> str:
    """The images of the accuracies; a choice (``djip tune``) holds training images out for them."""
    config = yaml.safe_load(next(iter(all_results(results)))["config"])
    held = config["BENCH"].get("HOLDOUT", 0)
    return "held-out training images" if held else "the test set"


def _has_means(results: Results, arms: Sequence[str]) -> bool:
    """Whether one of the tables ends with the mean of all distillers."""
    return any(
        mean_difference(cells, arm, arms[0], key) is not None
        for cells in results.values()
        if not axes_of(cells)
        for arm in arms[1:]
        for key in KEYS
    )


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A header and its lines, cells as text, as a Markdown table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    rows.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(rows)


def _what_ran(results: Results, planned: int | None, unasked: int) -> str:
    """One paragraph: how many students, how long, on which data, with which code."""
    found = list(all_results(results))

    def values(find: Callable[[Result], Any]) -> str:
        return ", ".join(sorted({str(find(result)) for result in found}))

    count = f"{len(found)} students"
    if planned is not None:
        count = f"{len(found) - unasked} of {planned} students"
    if unasked:
        count += f", and {unasked} that the table does not ask for (other values, more seeds)"
    hours = sum(result["seconds"] for result in found) / 3600
    epochs = values(lambda result: result["epochs"])
    lines = [f"{count}, {hours:.1f} hours of training in all; {epochs} epochs."]
    sets = [result["data"]["train"] for result in found if "data" in result]
    data = {f"{part['images']} training images ({part['sha256']})" for part in sets}
    if data:
        lines.append(f"Data: {', '.join(sorted(data))}.")
    code = values(lambda result: result["code"] or "of an installed package")
    torch = values(lambda result: result["environment"]["torch"])
    lines.append(f"Code {code}; torch {torch}.")
    return " ".join(lines)


def latex_report(rows: Sequence[Row], results: Results, arms: Sequence[str]) -> str:
    r"""A ``tabular`` per pair and key, for ``\usepackage{booktabs}``."""
    parts = ["% Written by djip report; needs \\usepackage{booktabs}."]
    for pair in results:
        for key in KEYS:
            table = pair_table(rows, results, pair, arms, key)
            parts.append(f"% {pair}, {TITLES[key]}\n{_latex_table(table)}")
    return "\n\n".join(parts) + "\n"


def _latex_table(table: Sequence[Sequence[str]]) -> str:
    header, *lines = table
    parts = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\toprule"]
    parts += [_latex_line(header), "\\midrule"]
    for cells in lines:
        if cells[0] == MEAN_OF_ALL:
            parts.append("\\midrule")
        parts.append(_latex_line(cells))
    return "\n".join([*parts, "\\bottomrule", "\\end{tabular}"])


def _latex_line(cells: Sequence[str]) -> str:
    symbols = {"_": "\\_", "%": "\\%", "&": "\\&", "±": "$\\pm$", "−": "$-$", "→": "$\\to$"}
    texts = ("".join(symbols.get(letter, letter) for letter in _minus(cell)) for cell in cells)
    return " & ".join(texts) + " \\\\"


def _minus(cell: str) -> str:
    """A typographic minus in front of a number."""
    return f"−{cell[1:]}" if cell[:1] == "-" and cell[1:2].isdigit() else cell
