"""The order in which a fit reads a loader: set by (seed, round), and left as it was before."""

from pathlib import Path

import pytest
import torch
from helpers.textures import data, fit
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from djip_ext.fit.sampling import begin_round, kept_random_state


def images() -> TensorDataset:
    return TensorDataset(*map(torch.cat, zip(*data(), strict=True)))


def batch_sampled() -> tuple[DataLoader, torch.Generator]:
    """A loader whose order is drawn below its batch sampler, and what it is drawn from."""
    generator, dataset = torch.Generator().manual_seed(5), images()
    sampler = RandomSampler(dataset, generator=generator)
    return DataLoader(dataset, batch_sampler=BatchSampler(sampler, 8, False)), generator


def test_the_order_of_a_batch_sampler_is_that_of_seed_and_round() -> None:
    def labels(seed: int, index: int) -> list[int]:
        loader, generator = batch_sampled()
        generator.manual_seed(100 * seed + index)  # whatever was drawn before
        begin_round(loader, seed, index)
        return [value for batch in loader.batch_sampler for value in batch]

    def again(seed: int, index: int) -> list[int]:
        loader, _ = batch_sampled()
        begin_round(loader, seed, index)
        return [value for batch in loader.batch_sampler for value in batch]

    assert labels(0, 1) == again(0, 1)
    assert len({tuple(labels(*which)) for which in ((0, 0), (0, 1), (1, 0))}) == 3


def test_the_generator_of_a_batch_sampler_is_left_as_it_was() -> None:
    loader, generator = batch_sampled()
    before = generator.get_state()
    fit(loader, rounds=1)
    assert torch.equal(generator.get_state(), before)


def test_a_fit_with_a_batch_sampler_resumes_to_the_same_lens(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["round"] == 1:
            raise Stop

    with pytest.raises(Stop):
        fit(batch_sampled()[0], checkpoint=tmp_path / "fit.pth", log=stop)
    resumed = fit(batch_sampled()[0], checkpoint=tmp_path / "fit.pth")
    whole = fit(batch_sampled()[0])
    assert [row["cmi"] for row in resumed.history] == [row["cmi"] for row in whole.history]
    assert torch.equal(resumed.lens.q, whole.lens.q)


@pytest.mark.parametrize("inside", [False, True], ids=["sampler", "in a batch sampler"])
def test_the_epoch_of_a_distributed_sampler_is_set_and_put_back(inside: bool) -> None:
    dataset = images()
    sampler = DistributedSampler(dataset, 1, 0, shuffle=True)
    sampler.set_epoch(7)
    if inside:
        loader = DataLoader(dataset, batch_sampler=BatchSampler(sampler, 8, False))
    else:
        loader = DataLoader(dataset, 8, sampler=sampler)
    order = list(sampler)
    with kept_random_state(loader):
        begin_round(loader, 0, 3)
        assert sampler.epoch == 3 and list(sampler) != order
    assert sampler.epoch == 7 and list(sampler) == order
