"""The ImageNet classifiers: torchvision's and mdistiller's keys and values, our surface."""

import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as torchvision_models
from torch import Tensor, nn

from djip_ext.bench.models.imagenet import PUBLISHED, imagenet_model_dict

# parameters and digest of the sorted "key:shape" lines with 1000 classes, taken from mdistiller
# a08d46f
PINNED = {
    "ResNet18": (11_689_512, "1dcde4b21afa712c"),
    "ResNet34": (21_797_672, "c9e0bf87b4391ad8"),
    "ResNet50": (25_557_032, "ce6ad2593ee187ab"),
    "ResNet101": (44_549_160, "e0e4b4ababa6968b"),
    "MobileNetV1": (4_231_976, "2c25d7608115018d"),
}
CHANNELS = {
    **dict.fromkeys(["ResNet18", "ResNet34"], [64, 64, 128, 256, 512]),
    **dict.fromkeys(["ResNet50", "ResNet101"], [64, 256, 512, 1024, 2048]),
    "MobileNetV1": [32, 128, 256, 512, 1024],
}

every_model = pytest.mark.parametrize("name", PINNED)
small_ones = pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "MobileNetV1"])


def build(name: str, num_classes: int = 1000) -> nn.Module:
    torch.manual_seed(0)
    return imagenet_model_dict[name](num_classes=num_classes)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@every_model
def test_state_dict_layout_is_that_of_mdistiller(name: str) -> None:
    with torch.device("meta"):
        model = imagenet_model_dict[name](num_classes=1000)
    lines = sorted(f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (sum(p.numel() for p in model.parameters()), digest) == PINNED[name]


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_torchvisions_weights_load_and_give_torchvisions_logits(name: str) -> None:
    theirs = torchvision_models.get_model(PUBLISHED[name])
    theirs(images())  # running statistics other than 0 and 1
    ours = build(name)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        expected, (logits, _) = theirs.eval()(images()), ours.eval()(images())
    torch.testing.assert_close(logits, expected)


@small_ones
def test_forward_returns_logits_and_the_maps_of_every_stage(name: str) -> None:
    model = build(name, num_classes=7).eval()
    logits, feats = model(images())
    assert logits.shape == (2, 7)
    expected = [
        (2, channels, side, side)
        for channels, side in zip(CHANNELS[name], (32, 16, 8, 4, 2), strict=True)
    ]
    assert (
        [tuple(f.shape) for f in feats["feats"]]
        == [tuple(f.shape) for f in feats["preact_feats"]]
        == expected
    )
    assert torch.equal(model.fc(feats["pooled_feat"]), logits)
    for after, before in zip(feats["feats"][1:], feats["preact_feats"][1:], strict=True):
        assert before.min() < 0 and torch.equal(after, F.relu(before))


@small_ones
def test_stage_channels_and_batch_norms_fit_the_maps(name: str) -> None:
    model = build(name)
    assert model.get_stage_channels() == CHANNELS[name]
    assert [bn.num_features for bn in model.get_bn_before_relu()] == CHANNELS[name][1:]


@small_ones
def test_one_training_forward_updates_each_running_statistic_once(name: str) -> None:
    model = build(name).train()
    model(images())
    assert {
        b.item() for key, b in model.named_buffers() if key.endswith("num_batches_tracked")
    } == {1}


@small_ones
def test_weights_and_features_are_those_of_mdistiller(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = os.environ.get("MDISTILLER_ROOT")
    if not root:
        pytest.skip("MDISTILLER_ROOT names no checkout of mdistiller")
    monkeypatch.syspath_prepend(str(Path(root) / "mdistiller" / "models"))
    monkeypatch.delitem(sys.modules, "imagenet", raising=False)
    import imagenet as host

    theirs, ours = host.imagenet_model_dict[name](), build(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (expected_logits, expected), (logits, feats) = theirs.eval()(x), ours.eval()(x)
    torch.testing.assert_close(
        logits, expected_logits, rtol=1e-5, atol=1e-3
    )  # untrained: logits in the tens
    extra = len(feats["feats"]) - len(
        expected["feats"]
    )  # mdistiller's MobileNetV1 leaves out the stem's map
    for key in ("feats", "preact_feats"):
        for ours_map, theirs_map in zip(feats[key][extra:], expected[key], strict=True):
            assert (
                ours_map - theirs_map
            ).abs().max() <= 1e-5 * theirs_map.abs().max()  # untrained: activations are huge
