"""The table of a paper from results: Markdown to read, LaTeX to print."""

from collections.abc import Callable, Sequence
from typing import Any

from .axes import axes_of, split
from .compare import Summary
from .records import KEYS, Pair, Results, all_runs, mean_difference

TITLES = {"last_acc": "last epoch", "best_acc": "best epoch"}


def pair_table(rows: Sequence[dict[str, Any]], results: Results, pair: Pair, arms: Sequence[str], key: str) -> list[list[str]]:
    """Header and lines of the table of one pair: a line a distiller, for each arm mean ± spread and the paired difference ± CI.

    Args:
        rows: of :func:`~djip_ext.bench.records.table_rows`.
        arms: the baseline first.
        key: "last_acc" or "best_acc".
    """
    baseline = arms[0]
    axes = axes_of(results[pair])
    header = ["distiller", *axes, "n", *arms, *(f"{arm} − {baseline}" for arm in arms[1:]), "published"]
    lines = []
    for name in results[pair]:
        distiller, values_of = split(name)
        columns = {axis: values_of.get(axis, "") for axis in axes}
        place = {**vars(pair), "distiller": distiller, **columns}
        own = {row["arm"]: row for row in rows if place.items() <= row.items()}
        counts = sorted({own[arm]["n"] for arm in arms if arm in own} | ({0} if any(arm not in own for arm in arms) else set()))
        values = [_plus_minus(own[arm][key], own[arm][f"{key}_sd"]) if arm in own else "" for arm in arms]
        gains = [_plus_minus(own[arm][f"{key}_diff"], own[arm][f"{key}_ci95"], "+") if arm in own else "" for arm in arms[1:]]
        published = " → ".join(f"{own[arm]['published']:.2f}" for arm in arms if arm in own and own[arm]["published"] != "")
        elsewhere = [own[arm] for arm in arms if arm in own and own[arm]["published_pairs"]]
        if elsewhere and not published:
            count = elsewhere[0]["published_pairs"]
            published = f"{elsewhere[0]['published_gain_elsewhere']:+.2f} on {count} other pair{'s' if count > 1 else ''}"
        lines.append([distiller, *map(str, columns.values()), " to ".join(map(str, [counts[0], counts[-1]] if len(counts) > 1 else counts)), *values, *gains, published])
    means = [mean_difference(results[pair], arm, baseline, key) for arm in arms[1:]]
    if any(means) and not axes:  # the values of an axis are there to be compared, not to be averaged
        lines.append(["mean of all", "", *[""] * len(arms), *(_summary(mean) for mean in means), ""])
    return [header, *lines]


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
    rows: Sequence[dict[str, Any]],
    results: Results,
    arms: Sequence[str],
    planned: int | None,
    pictures: Sequence[str],
    lenses: str,
) -> str:
    """The whole report: what ran, the tables of every pair, the pictures, where the published numbers come from, the lenses.

    Args:
        planned: students that the table plans, None when only records are known.
        pictures: file names beside the report.
        lenses: of :func:`~djip_ext.bench.table_lenses.lens_section`.
    """
    parts = [f"# {title}", _what_ran(results, planned)]
    for pair in results:
        for key in KEYS:
            parts += [f"## {pair}, {TITLES[key]}", markdown_table(pair_table(rows, results, pair, arms, key))]
    explanation = (
        "Accuracy on the test set in %, mean ± standard deviation over n seeds; "
        f"differences to {arms[0]} in points, paired by seed, ± half of the 95 % t-interval."
    )
    if any(not axes_of(results[pair]) and mean_difference(results[pair], arm, arms[0], key) for pair in results for arm in arms[1:] for key in KEYS):
        explanation += " *mean of all* averages the differences of all distillers for each seed first; its interval is over seeds."
    parts.append(explanation)
    sources = list(dict.fromkeys(row["published_source"] for row in rows if row["published_source"]))
    if any(row["published_pairs"] for row in rows):
        missing = "Where this pair has no published number, the published gain by DJIP on other pairs stands there, their mean"
        parts.append(f"{missing} (djip_ext/bench/published.csv).")
    if sources:
        parts.append(f"Published: {'; '.join(sources)}: 240 epochs on all of CIFAR-100, 100 on ImageNet.")
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join([*parts, lenses]).rstrip() + "\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A header and its lines, cells as text, as a Markdown table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    rows.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(rows)


def _what_ran(results: Results, planned: int | None) -> str:
    runs = list(all_runs(results))

    def values(find: Callable[[dict[str, Any]], Any]) -> str:
        return ", ".join(sorted({str(find(run)) for run in runs}))

    count = f"{len(runs)} students" if planned is None else f"{len(runs)} of {planned} students"
    hours = sum(run["seconds"] for run in runs) / 3600
    lines = [f"{count}, {hours:.1f} hours of training in all; {values(lambda run: run['epochs'])} epochs."]
    data = sorted({f"{run['data']['train']['images']} training images ({run['data']['train']['sha256']})" for run in runs if "data" in run})
    if data:
        lines.append(f"Data: {', '.join(data)}.")
    code, torch = values(lambda run: run["code"] or "of an installed package"), values(lambda run: run["environment"]["torch"])
    lines.append(f"Code {code}; torch {torch}.")
    return " ".join(lines)


def latex_report(rows: Sequence[dict[str, Any]], results: Results, arms: Sequence[str]) -> str:
    r"""A ``tabular`` a pair and key, for ``\usepackage{booktabs}``."""
    parts = ["% Written by djip report; needs \\usepackage{booktabs}."]
    for pair in results:
        for key in KEYS:
            header, *lines = pair_table(rows, results, pair, arms, key)
            body = [_latex_line(header), "\\midrule", *(line for cells in lines for line in _latex_body(cells))]
            begin = f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
            parts.append("\n".join([f"% {pair}, {TITLES[key]}", begin, "\\toprule", *body, "\\bottomrule", "\\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _latex_body(cells: Sequence[str]) -> list[str]:
    return ["\\midrule", _latex_line(cells)] if cells[0] == "mean of all" else [_latex_line(cells)]


def _latex_line(cells: Sequence[str]) -> str:
    symbols = {"_": "\\_", "%": "\\%", "&": "\\&", "±": "$\\pm$", "−": "$-$", "→": "$\\to$"}
    return " & ".join("".join(symbols.get(letter, letter) for letter in _minus(cell)) for cell in cells) + " \\\\"


def _minus(cell: str) -> str:
    """A typographic minus in front of a number."""
    return f"−{cell[1:]}" if cell[:1] == "-" and cell[1:2].isdigit() else cell
