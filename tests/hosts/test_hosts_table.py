"""The table of hosts: rows survive the file, and every failure is told with its reason."""

from pathlib import Path

from hosts_table import FIT, WORKS, Row, exceptions, read_rows, summary, write_rows

ROWS = [
    Row("a/host", "1234567, 2023-11", "KD", WORKS, WORKS, WORKS, WORKS, "yes"),
    Row("a/host", "1234567, 2023-11", "OFD", WORKS, WORKS, WORKS, "no such flag, really", "no"),
    Row("a/host", "1234567, 2023-11", "AT", "KeyError: 'AT'"),
    Row("a/host", "1234567, 2023-11", "RKD", "KeyError: 'AT'"),
    Row("a/host", "1234567, 2023-11", "DIST+", "", WORKS, WORKS, WORKS),
    Row("b/host", "89abcde, 2024-01", "CC+", "", "KeyError: 'cc'", "KeyError: 'cc'", WORKS),
    Row("b/host", "89abcde, 2024-01", "FT+", "", "KeyError: 'ft'", "KeyError: 'ft'", WORKS),
    Row("a/host", "1234567, 2023-11", FIT, lens=WORKS),
    Row("b/host", "89abcde, 2024-01", "KD", WORKS, WORKS, "the lens changes nothing", WORKS, "yes"),
]


def test_rows_survive_the_file(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "table.csv") == []
    write_rows(tmp_path / "table.csv", ROWS)
    assert read_rows(tmp_path / "table.csv") == ROWS
    assert "\n".join(summary(ROWS)) in (tmp_path / "table.md").read_text()


def test_the_summary_counts_each_entry_point_among_what_runs_without_a_lens() -> None:
    assert summary(ROWS)[2:] == [
        "| a/host | 1234567, 2023-11 | 4 | 2 | 2 of 2 | 1 of 2 | 1 of 2 | 1 of 1 | yes |",
        "| b/host | 89abcde, 2024-01 | 1 | 1 | 0 of 1 | 1 of 1 | 1 of 1 | 0 of 2 |  |",
    ]


def test_every_failure_is_told_once_with_its_reason() -> None:
    assert exceptions(ROWS)[2:] == [
        "| a/host | OFD | one line | no such flag, really |",
        "| a/host | AT, RKD | plain | KeyError: 'AT' |",
        "| b/host | CC+, FT+ | identity, lens | KeyError: '...' |",
        "| b/host | KD | lens | the lens changes nothing |",
    ]
    assert exceptions(ROWS[:1]) == ["Every run worked."]
