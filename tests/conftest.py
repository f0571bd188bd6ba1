"""What every test shares: one thread, fixed seeds."""

import pytest
import torch

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
