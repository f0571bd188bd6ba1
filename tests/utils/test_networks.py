"""Where the logits are in what networks return."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from djip_ext import DJIPError
from djip_ext.utils.networks import logits_of

LOGITS = torch.randn(4, 3)


@pytest.mark.parametrize(
    "output",
    (
        LOGITS,
        (LOGITS, {"feats": []}),
        [LOGITS, None],
        SimpleNamespace(logits=LOGITS),
        SimpleNamespace(logits=(LOGITS, LOGITS + 1)),
        {"logits": LOGITS, "feats": None},
    ),
)
def test_finds_the_logits(output: Any) -> None:
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize(
    "output", (None, (), "logits", torch.randn(4, 3, 2, 2), {"out": LOGITS}, ({}, LOGITS))
)
def test_refuses_what_holds_no_logits(output: Any) -> None:
    with pytest.raises(DJIPError, match="needs logits"):
        logits_of(output)
