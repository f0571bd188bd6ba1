"""A teacher behind a lens that is run piece by piece, and what must go on working beside it."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djip_ext import DJIPError, DJIPTeacher, JPEGLens

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PAST = "past the lens; call the teacher itself, or run its parts on teacher.apply_lens"


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.layer1 = nn.Sequential(nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)))
        self.fc = nn.Linear(8, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layer1(self.bn1(self.conv1(1 * x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x).mean((2, 3)))


class Wrapped(nn.Module):
    """Hugging Face's manner: the network is a part, and images come by name."""

    def __init__(self) -> None:
        super().__init__()
        self.vit, self.classifier = Network(), nn.Identity()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(self.vit(x=pixel_values))


def behind(network: nn.Module) -> DJIPTeacher:
    return DJIPTeacher(network.eval(), JPEGLens(40.0), MEAN, STD)


@pytest.fixture
def image() -> Tensor:
    return 2 * torch.rand(2, 3, 16, 16) - 1


# ---- refused


@pytest.mark.parametrize(
    "run",
    [
        lambda t, x: t.conv1(x),
        lambda t, x: nn.Sequential(t.conv1, t.bn1)(x),
        lambda t, x: nn.Sequential(*list(t.djip_teacher.children())[:2])(x),
        lambda t, x: t.djip_teacher.forward_features(x),
    ],
)
def test_an_image_that_enters_a_part_is_refused_in_one_line(run: Any, image: Tensor) -> None:
    network = Network()
    teacher = behind(network)
    teacher(image)
    with pytest.raises(DJIPError, match=PAST) as caught:
        run(teacher, image)
    assert "\n" not in str(caught.value)


def test_hugging_face_s_and_wrapped_parts(image: Tensor) -> None:
    teacher = behind(Wrapped())
    for run in (
        lambda: teacher.vit(x=image),
        lambda: teacher.vit(image),
        lambda: teacher.vit.conv1(image),
    ):
        with pytest.raises(DJIPError, match=PAST):
            run()
    assert teacher(pixel_values=image).shape == (2, 5)


def test_torchvision_s_extractors(image: Tensor) -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    network = Network().eval()
    nodes = {"layer1": "f", "fc": "logits"}
    plain = extraction.create_feature_extractor(copy.deepcopy(network), nodes)
    lens = JPEGLens(40.0)
    teacher = DJIPTeacher(network, lens, MEAN, STD)
    expected = teacher(image)
    with pytest.raises(DJIPError, match=r"cannot follow the lens; extract from the plain network"):
        extraction.create_feature_extractor(teacher, nodes)
    with pytest.raises(DJIPError, match=PAST):  # of its parts, taken after wrapping
        extraction.create_feature_extractor(teacher.djip_teacher, ["layer1"])(image)
    cure = DJIPTeacher(plain, lens, MEAN, STD, any_teacher=True)
    torch.testing.assert_close(cure(image)["logits"], expected)
    from torchvision.models._utils import IntermediateLayerGetter

    getter = IntermediateLayerGetter(teacher.djip_teacher, {"layer1": "f"})
    with pytest.raises(DJIPError, match=PAST):
        getter(image)


def test_torchdistill_s_sequential_and_deeper_stems(image: Tensor) -> None:
    stem = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1))), nn.Flatten(2))
    network = nn.Sequential(nn.Sequential(stem), nn.Flatten(), nn.Linear(4 * 256, 5))
    teacher = behind(network)
    teacher(image)
    deep = teacher.djip_teacher[0][0][0][0]
    with pytest.raises(DJIPError, match="0.0.0.0.*past the lens"):
        deep(image)


def test_an_error_within_the_network_leaves_it_watched(image: Tensor) -> None:
    teacher = behind(Network())
    with pytest.raises(RuntimeError):
        teacher.djip_teacher(torch.zeros(1, 5, 8, 8))
    with pytest.raises(DJIPError, match=PAST):
        teacher.conv1(image)


# ---- allowed


def test_parts_may_run_on_features_and_on_lensed_images(image: Tensor) -> None:
    network = Network()
    teacher = behind(network)
    assert teacher.fc(torch.ones(2, 8)).shape == (2, 5)
    assert teacher.layer1(torch.ones(2, 6, 4, 4)).shape == (2, 8, 4, 4)
    seen = teacher.apply_lens(image)
    features = teacher.layer1(teacher.bn1(teacher.conv1(seen)))
    torch.testing.assert_close(teacher.fc(features.mean((2, 3))), teacher(image))


def test_the_plain_network_as_a_whole_stays_usable(image: Tensor) -> None:
    network = Network()
    expected = network.eval()(image)
    teacher = behind(network)
    assert torch.equal(network(image), expected)
    other = DJIPTeacher(network, JPEGLens(9.0), MEAN, STD)
    assert torch.equal(teacher.djip_teacher(image), expected) and other(image).shape == (2, 5)
    assert len(network._forward_pre_hooks) == 1  # watched once


def test_a_method_that_takes_images_gets_the_lens(image: Tensor) -> None:
    """As timm's FeatureDistillationTask calls it."""
    network = Network()
    teacher = behind(network)
    features = teacher.forward_features(image)
    torch.testing.assert_close(teacher.fc(features.mean((2, 3))), teacher(image))
    assert torch.equal(teacher.forward_features(teacher.apply_lens(image)), features)
    assert torch.equal(teacher.forward_features(x=image), features)
    with pytest.raises(DJIPError, match=PAST):  # watched again afterwards
        teacher.conv1(image)


def test_a_stop_by_the_user_leaves_it_watched(image: Tensor) -> None:
    class Stopped(Network):
        stop = True

        def forward(self, x: Tensor) -> Tensor:
            if self.stop:
                raise KeyboardInterrupt
            return super().forward(x)

    network = Stopped()
    teacher = behind(network)
    with pytest.raises(KeyboardInterrupt):
        teacher(image)
    network.stop = False
    teacher(image)
    with pytest.raises(DJIPError, match=PAST):
        teacher.conv1(image)


def test_a_new_part_is_watched_too(image: Tensor) -> None:
    teacher = behind(Network())
    teacher.conv1 = nn.Conv2d(3, 6, 3, padding=1)
    with pytest.raises(DJIPError, match=PAST):
        teacher.conv1(image)
    assert teacher(image).shape == (2, 5)


def test_hooks_of_others_go_on_working(image: Tensor) -> None:
    teacher = behind(Network())
    kept: list[Tensor] = []
    teacher.layer1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    teacher(image)
    teacher(image)
    assert len(kept) == 2 and torch.equal(kept[0], kept[1])
    torch.testing.assert_close(kept[0], teacher.forward_features(image))


@pytest.mark.parametrize("copied", (copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))))
def test_copies_are_watched_on_their_own(copied: Any, image: Tensor) -> None:
    teacher = behind(Network())
    twin = copied(teacher)
    assert torch.equal(twin(image), teacher(image))
    assert torch.equal(twin.forward_features(image), teacher.forward_features(image))
    with pytest.raises(DJIPError, match=PAST):
        twin.conv1(image)
    assert list(twin.state_dict()) == list(teacher.state_dict())


def test_a_compiled_teacher_goes_on(image: Tensor) -> None:
    teacher = behind(Network())
    expected = teacher(image)
    compiled = torch.compile(behind(copy.deepcopy(teacher.djip_teacher)), backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(image), expected)
    inner = behind(torch.compile(Network().eval(), backend="eager"))
    assert inner(image).shape == (2, 5)


def test_parallel_replicas_share_the_watch(image: Tensor) -> None:
    """Threads of torch.nn.DataParallel: one replica may end while another still runs."""
    inside, ended = threading.Event(), threading.Event()

    class Waits(Network):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is slow:
                inside.set()
                assert ended.wait(60)
            return super().forward(x)

    found: list[Tensor] = []
    slow = threading.Thread(target=lambda: found.append(teacher(image)))
    teacher = behind(Waits())
    expected = teacher(image)
    slow.start()
    assert inside.wait(60)
    teacher(image)  # begins and ends while the other is between its call and conv1
    ended.set()
    slow.join()
    assert len(found) == 1 and torch.equal(found[0], expected)


def test_identity_watches_nothing(image: Tensor) -> None:
    network = Network().eval()
    teacher = DJIPTeacher(network, "identity", MEAN, STD)
    assert torch.equal(teacher.conv1(image), network.conv1(image))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_timm_s_feature_distillation_gets_the_lens(image: Tensor) -> None:
    timm = pytest.importorskip("timm")
    task = pytest.importorskip("timm.task")
    student = timm.create_model("test_byobnet", num_classes=5)
    network = timm.create_model("test_byobnet", num_classes=5)
    lens = JPEGLens(40.0)
    teacher = DJIPTeacher(network, lens, MEAN, STD)
    label = torch.tensor([0, 1])
    how = {"criterion": nn.CrossEntropyLoss(), "verbose": False}
    torch.manual_seed(0)
    with_lens = task.FeatureDistillationTask(student, teacher, **how).eval()
    torch.manual_seed(0)
    without = task.FeatureDistillationTask(student, copy.deepcopy(network), **how).eval()
    seen = teacher.apply_lens(image)
    losses = [float(t(x, label)["kd_loss"]) for t, x in ((with_lens, image), (without, image))]
    assert abs(losses[0] - losses[1]) > 1e-6
    features = teacher.forward_features(image)
    torch.testing.assert_close(features, network.forward_features(seen), rtol=0, atol=1e-5)


def test_hugging_face_s_vit_is_run_as_a_whole_only(image: Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    teacher = behind(transformers.ViTForImageClassification(config))
    assert teacher(pixel_values=image).logits.shape == (2, 5)
    for run in (teacher.vit, teacher.base_model, teacher.vit.embeddings):
        with pytest.raises(DJIPError, match=PAST):
            run(pixel_values=image)
