"""Images that stay in folders: prepared for the network, reproducible batches, clear errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.folders import make_folders
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from djip_ext.bench.dataset.image_sets import get_dataset, load_image_sets
from djip_ext.bench.dataset.imagefolder import FolderLoader, FolderSet, load_folders
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.models.input_spec import IMAGENET, InputSpec
from djip_ext.errors import DJIPError
from djip_ext.lens.normalisation import Normalisation

SPEC = InputSpec((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), (16, 16), 20)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "data")


@pytest.fixture
def train(root: Path) -> FolderSet:
    return load_folders(root, SPEC, 0)[0]


def options(root: Path, *more: object) -> list:
    fixed = [
        "DATASET.TYPE",
        "imagefolder",
        "DATASET.NUM_WORKERS",
        0,
        "BENCH.DEVICE",
        "cpu",
        "BENCH.DATA_ROOT",
        str(root),
    ]
    return [*fixed, "DISTILLER.TEACHER", "ResNet34", *more]


def test_plain_batches_are_those_of_torchvisions_usual_pipeline(
    root: Path, train: FolderSet
) -> None:
    usual = transforms.Compose(
        [
            transforms.Resize(20),
            transforms.CenterCrop(16),
            transforms.ToTensor(),
            transforms.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    expected = ImageFolder(str(root / "train"), usual)
    batches = list(FolderLoader(train, 5))
    assert [len(batch) for batch in batches] == [2, 2, 2] and len(FolderLoader(train, 5)) == 3
    torch.testing.assert_close(
        torch.cat([image for image, _ in batches]), torch.stack([image for image, _ in expected])
    )
    assert torch.cat([label for _, label in batches]).tolist() == expected.targets
    assert train.classes == ("n0000", "n0001", "n0002")


def test_a_size_before_the_crop_of_two_numbers_stretches_the_whole_image(root: Path) -> None:
    stretched = load_folders(root, InputSpec(SPEC.mean, SPEC.std, (16, 16), (16, 16)), 0)[0]
    image = Image.open(root / "train" / "n0000" / "0.png").convert("RGB")
    expected = np.asarray(transforms.functional.resize(image, [16, 16]))
    assert np.array_equal(stretched.pixels(torch.tensor([0]))[0].numpy(), expected)


def test_pixels_are_what_the_plain_batches_hold(train: FolderSet) -> None:
    index = torch.tensor([7, 2])
    images = torch.cat([image for image, _ in FolderLoader(train, 5)])[index]
    pixels = Normalisation(train.mean, train.std).to_pixels(images)
    torch.testing.assert_close(
        train.pixels(index).permute(0, 3, 1, 2).float(), pixels, atol=1e-3, rtol=0
    )


def test_tiny_imagenets_training_view_turns_the_whole_image(root: Path) -> None:
    """At most 20 degrees and perhaps mirrored, as in mdistiller: the middle of a tint remains."""
    spec = replace(SPEC, size=(16, 16), resize=(16, 16), train_view="rotation")
    train = load_folders(root, spec, 0)[0]
    (image, _, index), *_ = FolderLoader(train, 12, augment=True)
    (plain, _), *_ = FolderLoader(train, 12)
    centre = (slice(None), slice(None), slice(6, 10), slice(6, 10))
    difference = (image[centre] - plain[index][centre]).abs().mean()
    corner = image[:, :, 0, 0]
    black = Normalisation(spec.mean, spec.std).to_network(torch.zeros(1, 3, 1, 1))[0, :, 0, 0]
    assert 0 < difference < (image[centre] - plain[centre]).abs().mean()
    assert (corner == black).all(dim=1).any()  # a rotation leaves corners empty


def test_a_training_epoch_holds_every_image_once_with_its_index_and_label(train: FolderSet) -> None:
    batches = list(FolderLoader(train, 5, augment=True))
    index = torch.cat([batch[2] for batch in batches])
    assert sorted(index.tolist()) == list(range(12)) and index.tolist() != list(range(12))
    assert torch.equal(torch.cat([batch[1] for batch in batches]), train.labels[index])
    assert batches[0][0].shape == (5, 3, 16, 16) and batches[0][0].dtype == torch.float32


def test_an_epoch_depends_on_seed_and_number_alone_and_not_on_who_reads(root: Path) -> None:
    def epoch(seed: int, number: int, workers: int = 0, before: int = 0) -> torch.Tensor:
        loader = FolderLoader(load_folders(root, SPEC, workers)[0], 5, augment=True, seed=seed)
        for _ in range(before):
            list(loader)
        loader.epoch = number
        torch.manual_seed(before)
        return torch.cat([image for image, *_ in loader])

    first = epoch(1, 3)
    assert torch.equal(first, epoch(1, 3, before=2)) and torch.equal(
        first, epoch(1, 3, workers=2, before=1)
    )
    assert not torch.equal(first, epoch(1, 4)) and not torch.equal(first, epoch(2, 3))


def test_reading_leaves_the_global_random_state_alone(train: FolderSet) -> None:
    torch.manual_seed(5)
    list(FolderLoader(train, 5, augment=True))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_shares_of_all_processes_make_up_every_batch(train: FolderSet) -> None:
    whole = [batch[2].tolist() for batch in FolderLoader(train, 5, shuffle=True)]
    shares = [
        [batch[2].tolist() for batch in FolderLoader(train, 5, shuffle=True, shard=(rank, 2))]
        for rank in range(2)
    ]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [
        sorted(batch) for batch in whole
    ]


def test_a_fraction_keeps_every_class(train: FolderSet) -> None:
    few = train.subset(0.5)
    assert few.labels.bincount().tolist() == [2, 2, 2] and few.classes == train.classes
    assert set(few.paths.tolist()) < set(train.paths.tolist())
    assert torch.equal(
        few.pixels(torch.tensor([0])),
        train.pixels(torch.tensor([train.paths.tolist().index(few.paths[0])])),
    )


def test_get_dataset_gives_loaders_of_folders(root: Path) -> None:
    train, test, num_data, num_classes = get_dataset(
        load_cfg(None, options(root, "BENCH.INPUT_SIZE", 32, "BENCH.FRACTION", 0.5))
    )
    assert (num_data, num_classes, test.num_images) == (6, 3, 6)
    assert (
        len(next(iter(train))) == 3
        and len(next(iter(test))) == 2
        and next(iter(test))[0].shape == (6, 3, 32, 32)
    )
    assert train.data.spec.resize == 36  # 32 * 256 / 224
    assert train.augment and not test.augment


def test_images_get_imagenets_size_and_scale_unless_told_otherwise(root: Path) -> None:
    train, _ = load_image_sets(load_cfg(None, options(root)))
    assert train.spec == IMAGENET and (train.size, train.mean) == (
        (224, 224),
        (0.485, 0.456, 0.406),
    )
    train, _ = load_image_sets(
        load_cfg(None, options(root, "BENCH.MEAN", "[0.1,0.2,0.3]", "BENCH.STD", (1, 1, 1)))
    )
    assert (train.mean, train.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


def test_imagenet_may_lie_in_mdistillers_place(tmp_path: Path) -> None:
    make_folders(tmp_path / "imagenet")
    train, test = load_image_sets(load_cfg(None, options(tmp_path, "DATASET.TYPE", "imagenet")))
    assert (len(train.labels), len(test.labels)) == (12, 6)


def test_a_test_folder_stands_in_for_val(root: Path) -> None:
    (root / "val").rename(root / "test")
    assert len(load_folders(root, SPEC, 0)[1].labels) == 6


def test_a_missing_folder_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="nowhere.*--data-root"):
        load_folders(tmp_path / "nowhere", SPEC, 0)


def test_a_folder_without_classes_and_a_class_without_images_are_refused(root: Path) -> None:
    (root / "train" / "n0009").mkdir()
    with pytest.raises(DJIPError, match="n0009") as caught:
        load_folders(root, SPEC, 0)
    assert "\n" not in str(caught.value)
    for path in sorted((root / "train").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(DJIPError, match="train holds no images"):
        load_folders(root, SPEC, 0)


def test_classes_that_differ_between_train_and_val_are_refused(root: Path) -> None:
    (root / "val" / "n0002").rename(root / "val" / "other")
    with pytest.raises(DJIPError, match="different classes.*n0002"):
        load_folders(root, SPEC, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(workers: int, root: Path) -> None:
    (root / "train" / "n0001" / "1.png").write_bytes(b"not an image")
    with pytest.raises(DJIPError, match="n0001/1.png cannot be read") as caught:
        list(FolderLoader(load_folders(root, SPEC, workers)[0], 5))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(root))


def test_grey_and_transparent_images_become_colour(root: Path) -> None:
    Image.new("LA", (20, 20), (77, 0)).save(root / "train" / "n0000" / "0.png")
    assert load_folders(root, SPEC, 0)[0].pixels(torch.tensor([0])).unique().tolist() == [77]


def test_views_of_a_folder_are_refused(root: Path) -> None:
    with pytest.raises(DJIPError, match="BENCH.VIEWS"):
        get_dataset(load_cfg(None, options(root, "BENCH.VIEWS", 2)))
