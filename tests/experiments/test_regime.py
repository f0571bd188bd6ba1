"""results/cifar100/regime.py: which arms of a table it describes."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_students_from_labels_have_no_teacher_to_describe(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("regime", ROOT / "results/cifar100/regime.py")
    assert spec is not None and spec.loader is not None
    regime = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(regime)
    described = []
    monkeypatch.setattr(regime, "rows_of", lambda arm, *_: described.append(arm) or [])
    monkeypatch.setattr(sys, "argv", ["regime.py", "results/cifar100/audit_defences.yaml"])
    monkeypatch.chdir(ROOT)
    regime.main()
    assert "top1" in described and "labels" not in described
