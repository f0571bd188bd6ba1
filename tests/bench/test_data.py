"""Image sets and loaders: what a batch holds, where its randomness comes from, and clear errors."""

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from djip_ext.bench.dataset.augment import crop_and_flip, draw
from djip_ext.bench.dataset.image_sets import get_dataset, load_cifar100, load_image_sets
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.synthetic import NUM_CLASSES, make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.errors import DJIPError


def images(count: int = 12) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 3, 3, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def test_synthetic_images_are_a_function_of_the_seed() -> None:
    first, again, other = (
        make_synthetic(2, seed=4),
        make_synthetic(2, seed=4),
        make_synthetic(2, seed=5),
    )
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)


def test_synthetic_images_have_every_class_and_a_natural_spectrum() -> None:
    data = make_synthetic(6, seed=0)
    assert data.labels.bincount().tolist() == [6] * NUM_CLASSES
    spectrum = torch.fft.rfft2(data.images.float().mean(3)).abs().square().mean(0)
    assert spectrum[1, 1] > 20 * spectrum[12, 12]


def test_a_fraction_keeps_every_class_and_nests() -> None:
    data = make_synthetic(20, seed=0)
    small, large = data.subset(0.1), data.subset(0.5)
    assert small.labels.bincount().tolist() == [2] * NUM_CLASSES
    rows = {image.numpy().tobytes() for image in large.images}
    assert all(image.numpy().tobytes() in rows for image in small.images)


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_a_fraction_outside_0_1_is_refused(fraction: float) -> None:
    with pytest.raises(DJIPError, match="FRACTION"):
        images().subset(fraction)


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    data = images()
    padded = torch.nn.functional.pad(data.images, (0, 0, 2, 2, 2, 2))
    top, left = torch.tensor([[1], [4]]), torch.tensor([[0], [3]])
    out = crop_and_flip(padded, torch.tensor([5, 7]), 8, top, left, torch.tensor([[False], [True]]))
    assert torch.equal(out[0], padded[5, 1:9, 0:8])
    assert torch.equal(out[1], padded[7, 4:12, 3:11].flip(1))


def test_crops_reach_every_offset_and_flip_half() -> None:
    top, left, mirrored = draw(4000, 5, torch.Generator().manual_seed(0))
    assert set(top.flatten().tolist()) == set(left.flatten().tolist()) == set(range(5))
    assert 0.45 < mirrored.float().mean() < 0.55


def test_test_batches_are_normalised_pixels_in_order() -> None:
    data = images()
    loader = DeviceLoader(data, 5)
    x = torch.cat([image for image, _ in loader])
    expected = (
        data.images.permute(0, 3, 1, 2) / 255 - torch.tensor(data.mean)[:, None, None]
    ) / torch.tensor(data.std)[:, None, None]
    torch.testing.assert_close(x, expected)
    assert len(loader) == 3 and torch.equal(torch.cat([label for _, label in loader]), data.labels)


def test_a_training_epoch_holds_every_image_once_with_its_index_and_label() -> None:
    data = images()
    batches = list(DeviceLoader(data, 5, augment=True))
    index = torch.cat([batch[2] for batch in batches])
    assert sorted(index.tolist()) == list(range(12)) and index.tolist() != list(range(12))
    assert torch.equal(torch.cat([batch[1] for batch in batches]), data.labels[index])


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    def epoch(seed: int, number: int, before: int = 0) -> torch.Tensor:
        loader = DeviceLoader(images(), 5, augment=True, seed=seed)
        for _ in range(before):
            list(loader)
        loader.epoch = number
        return torch.cat([image for image, *_ in loader])

    assert torch.equal(epoch(1, 3), epoch(1, 3, before=2))
    assert not torch.equal(epoch(1, 3), epoch(1, 4)) and not torch.equal(epoch(1, 3), epoch(2, 3))


@pytest.mark.parametrize("how", [{}, {"shuffle": True}, {"augment": True, "views": 2}])
def test_shares_of_all_processes_make_up_every_batch(how: dict[str, int]) -> None:
    data = replace(images(11), labels=torch.arange(11))

    def batches(rank: int, processes: int) -> list[dict[int, torch.Tensor]]:
        loader = DeviceLoader(data, 5, shard=(rank, processes), **how)
        return [dict(zip(batch[1].tolist(), batch[0], strict=True)) for batch in loader]

    first, second = batches(0, 2), batches(1, 2)
    assert [len(share) for share in first] == [3, 3, 1]
    assert [len(share) for share in second] == [2, 2]  # an empty one is left out
    for whole, *shares in zip_longest(batches(0, 1), first, second, fillvalue={}):
        both = shares[0] | shares[1]
        assert both.keys() == whole.keys()
        assert all(torch.equal(both[label], image) for label, image in whole.items())


def test_views_are_shared_by_seeds_and_repeat() -> None:
    def epoch(seed: int, number: int) -> torch.Tensor:
        loader = DeviceLoader(images(), 5, augment=True, seed=seed, views=2)
        loader.epoch = number
        batches = list(loader)
        order = torch.cat([batch[2] for batch in batches]).argsort()
        return torch.cat([batch[0] for batch in batches])[order]

    assert torch.equal(epoch(1, 0), epoch(7, 2))
    assert not torch.equal(epoch(1, 0), epoch(1, 1))
    loader = DeviceLoader(images(), 5, augment=True, views=2)
    assert torch.equal(torch.cat(list(loader.view_batches(3, 7))), epoch(1, 1))


def test_missing_data_are_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="--data-root"):
        load_cifar100(str(tmp_path), train=True)


def test_damaged_data_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DJIPError, match="damaged"):
        load_cifar100(str(tmp_path), train=True)


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(DJIPError, match="mnist"):
        load_image_sets(load_cfg(None, ["DATASET.TYPE", "mnist"]))


def test_get_dataset_is_mdistillers() -> None:
    cfg = load_cfg(
        None, ["DATASET.TYPE", "synthetic", "BENCH.DEVICE", "cpu", "BENCH.FRACTION", 0.01]
    )
    train, test, num_data, num_classes = get_dataset(cfg)
    assert (num_data, num_classes) == (40, 20)
    assert len(next(iter(train))) == 3 and len(next(iter(test))) == 2


def test_without_augmentation_the_images_are_only_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    from djip_ext.bench.dataset import image_sets as dataset
    from djip_ext.bench.engine.cfg import differing_settings, load_cfg

    monkeypatch.setattr(dataset, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed))
    options = ["DATASET.TYPE", "synthetic", "SOLVER.BATCH_SIZE", 16]
    loader, _, count, _ = dataset.get_dataset(
        load_cfg(None, [*options, "BENCH.DEVICE", "cpu", "BENCH.AUGMENT", False])
    )
    epochs = [[batch for batch in loader] for _ in range(2)]
    orders = [torch.cat([index for _, _, index in batches]) for batches in epochs]
    assert not torch.equal(*orders) and all(
        torch.equal(order.sort().values, torch.arange(count)) for order in orders
    )
    for image, target, index in epochs[1]:
        assert torch.equal(image, loader.normalise(loader.data.images[index])) and torch.equal(
            target, loader.data.labels[index]
        )
    with pytest.raises(DJIPError, match="BENCH.VIEWS"):
        dataset.get_dataset(
            load_cfg(
                None, [*options, "BENCH.DEVICE", "cpu", "BENCH.AUGMENT", False, "BENCH.VIEWS", 4]
            )
        )
    old = (
        load_cfg(None, options).dump().replace("  AUGMENT: true\n", "")
    )  # of before there was the option
    assert "AUGMENT" not in old and differing_settings(load_cfg(None, options).dump(), old) == {}
