"""The embedded classifiers have the surface, sizes and state-dict layout of the published ones."""

import hashlib
import importlib.util
import math
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djip_ext.bench.models import checkpoint_path, cifar_model_dict

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other

# parameters and digest of the sorted "key:shape" lines with 100 classes, taken from mdistiller
# a08d46f
PINNED = {
    "resnet8": (83_892, "166d31a811b31c5f"),
    "resnet14": (181_108, "8525efa6fc491f19"),
    "resnet20": (278_324, "6db44f39e3bff21f"),
    "resnet32": (472_756, "325ee6108709f7b5"),
    "resnet44": (667_188, "f1263f7b0ed71e1a"),
    "resnet56": (861_620, "3977b81559d8630f"),
    "resnet110": (1_736_564, "7f8e5ac1814e480a"),
    "resnet8x4": (1_233_540, "5d5871b403f3a649"),
    "resnet32x4": (7_433_860, "610ad29043c56b33"),
    "ResNet18": (11_220_132, "bb5021dad9541605"),
    "ResNet50": (23_705_252, "d4a9e0738c8f8385"),
    "wrn_16_1": (180_916, "f6cf46040022f13d"),
    "wrn_16_2": (703_284, "bdbc50a2b3205f84"),
    "wrn_40_1": (569_780, "deef22602ae7584b"),
    "wrn_40_2": (2_255_156, "bf5731c8e8e2b95f"),
    "vgg8": (3_965_028, "d9f8d7533423754e"),
    "vgg11": (9_277_284, "6592bd1869a5938f"),
    "vgg13": (9_462_180, "7bec65f1ca17a0bf"),
    "vgg16": (14_774_436, "b420ddff7e4306ec"),
    "vgg19": (20_086_692, "2d318270df30c723"),
    "MobileNetV2": (812_836, "10e9036e17013c38"),
    "ShuffleV1": (949_258, "eb3bcbc847930cce"),
    "ShuffleV2": (1_355_528, "b7e2c3e764687767"),
}
TEACHERS = {"resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13"}

# (channels, side) of each feature map of a 32x32 image
CIFAR_RESNET = [(16, 32), (16, 32), (32, 16), (64, 8)]
CIFAR_RESNET_X4 = [(32, 32), (64, 32), (128, 16), (256, 8)]
VGG = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]
MAPS = {
    **dict.fromkeys(
        ["resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"],
        CIFAR_RESNET,
    ),
    **dict.fromkeys(["resnet8x4", "resnet32x4"], CIFAR_RESNET_X4),
    "ResNet18": [(64, 32), (64, 32), (128, 16), (256, 8), (512, 4)],
    "ResNet50": [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)],
    **dict.fromkeys(["wrn_16_1", "wrn_40_1"], CIFAR_RESNET),
    **dict.fromkeys(["wrn_16_2", "wrn_40_2"], [(16, 32), (32, 32), (64, 16), (128, 8)]),
    **dict.fromkeys(["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"], VGG),
    "MobileNetV2": [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)],
    "ShuffleV1": [(24, 32), (240, 16), (480, 8), (960, 4)],
    "ShuffleV2": [(24, 32), (116, 16), (232, 8), (464, 4)],
}

every_model = pytest.mark.parametrize("name", PINNED)
one_per_family = pytest.mark.parametrize(
    "name", ["resnet8", "ResNet18", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
)


def build(name: str, num_classes: int = 100, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_model_dict[name][0](num_classes=num_classes)


def images(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def layout_digest(model: nn.Module) -> str:
    lines = sorted(f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def classifier_of(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the largest expected value.

    Untrained deep networks have huge activations.
    """
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_benchmark_has_exactly_these_models() -> None:
    assert set(cifar_model_dict) == set(PINNED)


@every_model
def test_state_dict_layout_is_the_published_one(name: str) -> None:
    model = build(name)
    assert (sum(p.numel() for p in model.parameters()), layout_digest(model)) == PINNED[name]


@every_model
def test_forward_returns_logits_and_all_features(name: str) -> None:
    model = build(name, num_classes=7)
    logits, feats = model(images())
    assert logits.shape == (2, 7)
    expected = [(2, channels, side, side) for channels, side in MAPS[name]]
    assert [tuple(f.shape) for f in feats["feats"]] == expected
    assert [tuple(f.shape) for f in feats["preact_feats"]] == expected
    assert torch.equal(classifier_of(model)(feats["pooled_feat"]), logits)


@every_model
def test_one_training_forward_updates_each_running_statistic_once(name: str) -> None:
    model = build(name).train()
    model(images())
    assert {
        b.item() for key, b in model.named_buffers() if key.endswith("num_batches_tracked")
    } == {1}


@every_model
def test_stage_channels_are_those_of_the_feature_maps(name: str) -> None:
    assert build(name).get_stage_channels() == [channels for channels, _ in MAPS[name]]


@pytest.mark.parametrize("name", [name for name in PINNED if name != "ShuffleV2"])
def test_each_stage_has_a_batch_norm_of_its_width(name: str) -> None:
    model = build(name)
    norms = model.get_bn_before_relu()
    assert [bn.num_features for bn in norms] == [channels for channels, _ in MAPS[name][1:]]
    assert all(isinstance(bn, nn.BatchNorm2d) for bn in norms)


def test_shufflenet_v2_has_no_batch_norm_before_a_whole_stage() -> None:
    with pytest.raises(NotImplementedError):
        build("ShuffleV2").get_bn_before_relu()


@pytest.mark.parametrize("name", ["resnet8", "ResNet18", "ResNet50", "vgg8", "ShuffleV1"])
def test_features_are_the_rectified_preactivations(name: str) -> None:
    _, feats = build(name).eval()(images())
    for after, before in zip(feats["feats"][1:], feats["preact_feats"][1:], strict=True):
        assert before.min() < 0
        assert torch.equal(after, F.relu(before))


def test_preactivations_of_wide_resnets_are_the_normalised_features() -> None:
    model = build("wrn_16_1").eval()
    _, feats = model(images())
    for bn, raw, preact in zip(
        model.get_bn_before_relu(), feats["feats"][1:], feats["preact_feats"][1:], strict=True
    ):
        assert torch.equal(preact, bn(raw))


def test_features_of_shufflenet_v2_are_its_shuffled_preactivations() -> None:
    _, feats = build("ShuffleV2").eval()(images())
    for after, before in zip(feats["feats"][1:], feats["preact_feats"][1:], strict=True):
        kept, new = before.chunk(2, dim=1)
        assert torch.equal(after[:, 0::2], kept)
        assert torch.equal(after[:, 1::2], F.relu(new))


@one_per_family
def test_larger_images_are_accepted(name: str) -> None:
    logits, feats = build(name).eval()(images(64))
    assert logits.shape == (2, 100)
    assert feats["feats"][0].shape[-1] == 2 * MAPS[name][0][1]


@one_per_family
def test_channels_last_does_not_change_the_result(name: str) -> None:
    model = build(name).eval()
    logits, _ = model(images())
    again, _ = model.to(memory_format=torch.channels_last)(
        images().to(memory_format=torch.channels_last)
    )
    assert_close(again, logits)


@one_per_family
def test_autocast_gives_low_precision_logits_near_the_exact_ones(name: str) -> None:
    model = build(name).eval()
    logits, _ = model(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = model(images())
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), logits, tolerance=0.1)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("resnet32x4", "layer3.1.conv1.weight"),
        ("ResNet18", "layer3.0.conv1.weight"),
        ("wrn_40_2", "block3.layer.1.conv1.weight"),
        ("vgg8", "block3.0.weight"),
        ("MobileNetV2", "blocks.5.1.conv.3.weight"),
    ],
)
def test_convolutions_start_with_he_variance_by_fan_out(name: str, key: str) -> None:
    weight = build(name).state_dict()[key]
    std = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
    assert weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(("name", "key"), [("vgg8", "classifier"), ("MobileNetV2", "classifier.0")])
def test_classifiers_of_vgg_and_mobilenet_start_small(name: str, key: str) -> None:
    state = build(name).state_dict()
    assert state[f"{key}.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert not state[f"{key}.bias"].any()


@pytest.mark.parametrize("depth", [2, 9, 21])
def test_impossible_resnet_depth_is_refused(depth: int) -> None:
    from djip_ext.bench.models.resnet import NARROW, ResNet

    with pytest.raises(ValueError, match="6n \\+ 2"):
        ResNet(depth, NARROW)


@pytest.mark.parametrize("depth", [4, 9, 20])
def test_impossible_wide_resnet_depth_is_refused(depth: int) -> None:
    from djip_ext.bench.models.wrn import WideResNet

    with pytest.raises(ValueError, match="6n \\+ 4"):
        WideResNet(depth, 1)


def test_published_teachers_and_only_they_have_a_checkpoint() -> None:
    assert {name for name, (_, path) in cifar_model_dict.items() if path is not None} == TEACHERS


def test_checkpoint_path_follows_the_layout_of_mdistiller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DJIP_CKPT_ROOT", raising=False)
    tail = "download_ckpts/cifar_teachers/vgg13_vanilla/ckpt_epoch_240.pth"
    assert checkpoint_path("vgg13") == str(Path(tail))
    monkeypatch.setenv("DJIP_CKPT_ROOT", "/data")
    assert checkpoint_path("vgg13") == str(Path("/data") / tail)


@pytest.fixture(scope="module")
def host_models() -> dict:
    root = os.environ.get("MDISTILLER_ROOT")
    if not root:
        pytest.skip("MDISTILLER_ROOT names no checkout of mdistiller")
    package = Path(root) / "mdistiller" / "models" / "cifar"
    spec = importlib.util.spec_from_file_location(
        "host_cifar_models", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.cifar_model_dict


@every_model
def test_same_seed_gives_the_weights_of_mdistiller(name: str, host_models: dict) -> None:
    torch.manual_seed(0)
    theirs = host_models[name][0](num_classes=100).state_dict()
    ours = build(name).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_same_weights_give_the_features_of_mdistiller(
    name: str, training: bool, host_models: dict
) -> None:
    theirs, ours = host_models[name][0](num_classes=100), build(name)
    with torch.no_grad():
        theirs.train()(images())  # running statistics other than 0 and 1
        ours.load_state_dict(theirs.state_dict(), strict=True)
        expected_logits, expected = theirs.train(training)(images(32) * 2)
        logits, feats = ours.train(training)(images(32) * 2)
    assert_close(logits, expected_logits)
    assert_close(feats["pooled_feat"], expected["pooled_feat"])
    for key in set(expected) - {"pooled_feat"}:
        for ours_map, theirs_map in zip(feats[key], expected[key], strict=True):
            assert_close(ours_map, theirs_map)
