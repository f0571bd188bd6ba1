"""The teacher behind a lens: what the teacher was in every respect but what it sees."""

import copy
import itertools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djip_ext import DJIPError, DJIPTeacher, JPEGLens
from djip_ext.lens.io import weight_hash
from djip_ext.utils.networks import logits_of

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class Network(nn.Module):
    """A teacher in mdistiller's manner: logits, a dictionary of features, and its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4, 5)
        self.depth = 20

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        f = self.forward_features(x)
        return self.fc(f), {"pooled_feat": f}

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))

    def get_stage_channels(self) -> list[int]:
        return [4]


class Returns(nn.Module):
    """A network that hands out its logits in the given wrapping."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.network, self.wrap = Network(), wrap

    def forward(self, pixel_values: Tensor, scale: float = 1.0) -> Any:
        return self.wrap(scale * self.network(pixel_values)[0])


class Distiller(nn.Module):
    """The module around a teacher whose state dict a checkpoint holds."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(2, 2), teacher


@pytest.fixture
def network() -> Network:
    network = Network()
    network.features[1].running_mean.normal_()  # as if trained
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 18, 20)


def lens(q: float = 30.0) -> JPEGLens:
    return JPEGLens(q)


def seen(images: Tensor, q: float = 30.0) -> Tensor:
    """The lens and the normalisation around it, spelled out."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (lens(q)(255 * (images * std + mean)).detach() / 255 - mean) / std


# ---- what it computes


def test_identity_gives_the_teacher_s_output_bit_for_bit(network: Network, images: Tensor) -> None:
    logits, features = network(images)
    teacher = DJIPTeacher(copy.deepcopy(network), "identity", MEAN, STD)
    assert torch.equal(teacher(images)[0], logits) and torch.equal(
        teacher(images)[1]["pooled_feat"], features["pooled_feat"]
    )


def test_logits_and_features_are_those_of_the_lensed_image(
    network: Network, images: Tensor
) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    logits, features = teacher(images)
    expected, expected_features = network(seen(images))
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        features["pooled_feat"], expected_features["pooled_feat"], atol=1e-5, rtol=0
    )
    assert (logits - network(images)[0]).abs().max() > 1e-3


def test_applying_the_lens_keeps_the_dtype_of_the_images(network: Network, images: Tensor) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert teacher.apply_lens(images.bfloat16()).dtype == torch.bfloat16


def test_look_is_the_former_name_of_apply_lens(network: Network, images: Tensor) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert torch.equal(teacher.look(images), teacher.apply_lens(images))


@pytest.mark.parametrize("hard", (False, True))
def test_the_lens_is_called_as_a_module_once_per_image_batch(
    network: Network, images: Tensor, hard: bool
) -> None:
    """So that hooks, profilers and summaries see it."""
    teacher = DJIPTeacher(network, JPEGLens(30.0, hard=hard), MEAN, STD)
    calls: list[tuple[Tensor, Tensor]] = []
    teacher.djip_lens.register_forward_hook(
        lambda module, args, output: calls.append((args[0], output))
    )
    teacher(images)
    assert len(calls) == 1
    image, output = calls[0]
    assert torch.equal(image, images) and torch.equal(output, teacher.apply_lens(images))


def test_a_hook_on_the_lens_can_replace_what_the_teacher_sees(
    network: Network, images: Tensor
) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    teacher.djip_lens.register_forward_hook(lambda module, args, output: args[0])
    assert torch.equal(teacher(images)[0], network(images)[0])


@pytest.mark.parametrize(
    "wrap",
    (
        lambda t: t,
        lambda t: (t, "features"),
        lambda t: SimpleNamespace(logits=t),
        lambda t: {"logits": t},
    ),
)
def test_output_passes_through_as_the_teacher_gives_it(images: Tensor, wrap: Any) -> None:
    inner = Returns(wrap).eval()
    out, expected = DJIPTeacher(inner, lens(), MEAN, STD)(images), inner(seen(images))
    assert type(out) is type(expected)
    torch.testing.assert_close(logits_of(out), logits_of(expected), atol=1e-5, rtol=0)
    if isinstance(expected, tuple):
        assert out[1:] == expected[1:]


@pytest.mark.parametrize("other", ({}, {"scale": 2.0}))
def test_image_is_found_among_keyword_arguments(images: Tensor, other: dict[str, float]) -> None:
    inner = Returns(lambda t: t).eval()
    out = DJIPTeacher(inner, lens(), MEAN, STD)(pixel_values=images, **other)
    torch.testing.assert_close(out, inner(seen(images), **other), atol=1e-5, rtol=0)


def test_further_positional_arguments_reach_the_teacher(images: Tensor) -> None:
    inner = Returns(lambda t: t).eval()
    out = DJIPTeacher(inner, lens(), MEAN, STD)(images, 2.0)
    torch.testing.assert_close(out, inner(seen(images), 2.0), atol=1e-5, rtol=0)


def test_no_image_among_the_arguments_is_an_error(network: Network, images: Tensor) -> None:
    with pytest.raises(DJIPError, match="no image among"):
        DJIPTeacher(network, lens(), MEAN, STD)(picture=images)


# ---- frozen


def test_parameters_are_exactly_the_teacher_s(network: Network) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert {id(p) for p in teacher.parameters()} == {id(p) for p in network.parameters()}


def test_no_gradient_reaches_the_teacher_or_the_lens(network: Network, images: Tensor) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert not teacher(images)[0].requires_grad and not any(
        p.requires_grad for p in teacher.parameters()
    )


def test_gradient_with_respect_to_the_image_flows(network: Network, images: Tensor) -> None:
    teacher = DJIPTeacher(network, JPEGLens(1.0, alpha=1.0), MEAN, STD)
    gradient = torch.autograd.grad(teacher(images.requires_grad_())[0].sum(), images)[0]
    assert gradient.abs().max() > 0 and all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(("behind", "said"), [("lens", True), ("identity", False)])
def test_saving_the_inner_teacher_says_that_the_lens_is_not_in_it(
    network: Network, behind: str, said: bool, capsys: pytest.CaptureFixture
) -> None:
    saved: list[str] = []
    network.save_pretrained = saved.append  # as Hugging Face's models have it
    teacher = DJIPTeacher(network, lens() if behind == "lens" else "identity", MEAN, STD)
    teacher.save_pretrained("folder")
    assert saved == ["folder"]
    assert ("without its lens" in capsys.readouterr().out) == said


@pytest.mark.parametrize("chosen", (lens(), "identity"))
def test_train_leaves_eval_mode_and_batchnorm_statistics(
    network: Network, images: Tensor, chosen: Any
) -> None:
    before = weight_hash(network)
    distiller = Distiller(DJIPTeacher(network, chosen, MEAN, STD)).train()
    distiller.teacher.train(True)(images)
    assert (
        not any(module.training for module in distiller.teacher.modules())
        and weight_hash(network) == before
    )


def test_teacher_given_in_training_mode_is_put_in_eval_mode(network: Network) -> None:
    DJIPTeacher(network.train(), "identity", MEAN, STD)
    assert not any(module.training for module in network.modules())


def test_later_changes_of_the_lens_do_not_reach_the_teacher(
    network: Network, images: Tensor
) -> None:
    chosen = lens()
    teacher = DJIPTeacher(network, chosen, MEAN, STD)
    before = teacher(images)[0]
    chosen.q.data.fill_(90.0)
    assert torch.equal(teacher(images)[0], before) and chosen.q.requires_grad


# ---- looks like the teacher


def test_attributes_and_methods_are_the_teacher_s(network: Network) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert teacher.fc is network.fc and teacher.depth == 20 and teacher.get_stage_channels() == [4]


def test_missing_attribute_is_missing(network: Network) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert not hasattr(teacher, "get_bn_before_relu")


def test_special_methods_are_not_delegated() -> None:
    teacher = DJIPTeacher(nn.Sequential(Network()), lens(), MEAN, STD)
    assert not hasattr(teacher, "__len__") and not hasattr(teacher, "__getitem__")


def test_entry_point_that_bypasses_the_lens_raises_when_called(
    network: Network, images: Tensor
) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert hasattr(teacher, "features")
    with pytest.raises(DJIPError, match="features.* would bypass the lens"):
        teacher.features(images)


def test_guarded_module_can_still_be_read(network: Network) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert teacher.features[0] is network.features[0] and list(teacher.features) == list(
        network.features
    )
    assert len(list(teacher.features.parameters())) == 4


def test_identity_bypasses_nothing_so_guards_nothing(network: Network, images: Tensor) -> None:
    teacher = DJIPTeacher(network, "identity", MEAN, STD)
    assert torch.equal(teacher.forward_features(images), network.forward_features(images))


@pytest.mark.parametrize("chosen", (lens(), "identity"))
@pytest.mark.parametrize(
    "copied", (copy.deepcopy, copy.copy, lambda teacher: pickle.loads(pickle.dumps(teacher)))
)
def test_copy_and_pickle_answer_alike(
    network: Network, images: Tensor, chosen: Any, copied: Any
) -> None:
    teacher = DJIPTeacher(network, chosen, MEAN, STD)
    twin = copied(teacher)
    assert torch.equal(twin(images)[0], teacher(images)[0]) and twin.djip_id == teacher.djip_id


def test_deep_copy_shares_nothing(network: Network) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    twin = copy.deepcopy(teacher)
    twin.fc.weight.data.zero_()
    twin.djip_lens.q.zero_()
    assert network.fc.weight.abs().max() > 0 and teacher.djip_lens.q.min() > 0


@pytest.mark.parametrize("chosen", (lens(), "identity"))
def test_data_parallel_replica_answers_alike(network: Network, images: Tensor, chosen: Any) -> None:
    """What torch.nn.parallel.replicate does on GPUs.

    It makes shallow copies whose parameters and buffers are plain tensors.
    """
    teacher = DJIPTeacher(network, chosen, MEAN, STD)
    replicas = {module: module._replicate_for_data_parallel() for module in teacher.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            setattr(replica, name, replicas[child])
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            setattr(replica, name, tensor.detach().clone())
    replica = replicas[teacher]
    assert not list(replica.parameters())
    assert torch.equal(replica(images)[0], teacher(images)[0])


def test_replicas_share_what_was_checked(
    network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    monkeypatch.setattr("djip_ext.teacher.check_range", lambda *_: checked.append(1))
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    for _ in range(10):  # DataParallel makes new ones in every step
        teacher._replicate_for_data_parallel()._check_first_images((images,), {})
    teacher(images)
    assert checked == [1, 1, 1]  # the 2nd, 4th and 8th batch; of the first it is noise or far off


@pytest.mark.parametrize("wrong", [torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "image"])
def test_apply_lens_takes_normalised_images_alone(network: Network, wrong: Any) -> None:
    with pytest.raises(DJIPError):
        DJIPTeacher(network, lens(), MEAN, STD).apply_lens(wrong)


# ---- checkpoints


def wrapped(network: Network, chosen: JPEGLens | str | None) -> Distiller:
    network = copy.deepcopy(network)
    return Distiller(network if chosen is None else DJIPTeacher(network, chosen, MEAN, STD))


@pytest.mark.parametrize("chosen", (lens(), "identity"))
def test_state_dict_has_the_teacher_s_keys_and_a_fingerprint(network: Network, chosen: Any) -> None:
    plain, with_lens = wrapped(network, None).state_dict(), wrapped(network, chosen).state_dict()
    assert set(with_lens) == set(plain) | {"teacher.djip_fingerprint"}
    assert all(
        torch.equal(with_lens[key], value) or key.startswith("student")
        for key, value in plain.items()
    )


@pytest.mark.parametrize("chosen", (lens(), "identity"))
def test_checkpoint_resumes_with_the_same_lens(
    network: Network, images: Tensor, chosen: Any
) -> None:
    saved, resumed = wrapped(network, chosen), wrapped(Network(), chosen)
    result = resumed.load_state_dict(saved.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(resumed.teacher(images)[0], saved.teacher(images)[0])


def test_teacher_alone_resumes_too(network: Network, images: Tensor) -> None:
    saved, resumed = wrapped(network, lens()).teacher, wrapped(Network(), lens()).teacher
    resumed.load_state_dict(saved.state_dict())
    assert torch.equal(resumed(images)[0], saved(images)[0])


def test_loading_leaves_the_checkpoint_as_it_was(network: Network) -> None:
    state = wrapped(network, lens()).state_dict()
    keys = list(state)
    wrapped(network, lens()).load_state_dict(state)
    assert list(state) == keys


CHOICES = {"none": None, "identity": "identity", "lens": lens(), "other": lens(31.0)}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("old, new", list(itertools.permutations(CHOICES, 2)))
def test_checkpoint_does_not_resume_with_another_lens(
    network: Network, old: str, new: str, strict: bool
) -> None:
    if new == "none" and not strict:
        return  # a plain teacher's own loading, which then skips what it does not know
    state = wrapped(network, CHOICES[old]).state_dict()
    with pytest.raises(
        RuntimeError,
        match="djip_fingerprint"
        if new == "none"
        else "without a lens"
        if old == "none"
        else "another lens",
    ):
        wrapped(network, CHOICES[new]).load_state_dict(state, strict=strict)


@pytest.mark.parametrize("change", ("missing", "unexpected"))
def test_wrong_keys_are_still_noticed(network: Network, change: str) -> None:
    state = wrapped(network, lens()).state_dict()
    if change == "missing":
        del state["teacher.fc.weight"]
    else:
        state["teacher.extra"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=change.capitalize()):
        wrapped(network, lens()).load_state_dict(state)


def test_state_dict_follows_torch_s_other_ways_of_calling(network: Network) -> None:
    teacher = wrapped(network, lens()).teacher
    assert list(teacher.state_dict(prefix="t."))[-1] == "t.djip_fingerprint"
    assert teacher.state_dict(keep_vars=True)["fc.weight"] is teacher.fc.weight
    destination: dict[str, Tensor] = {}
    teacher.state_dict(destination=destination, prefix="a.")
    assert "a.fc.bias" in destination and "a.djip_fingerprint" in destination


# ---- refusals


def test_refuses_a_lens_of_other_weights_unless_told_to(network: Network, images: Tensor) -> None:
    chosen = lens()
    chosen.metadata = {"teacher_hash": "0" * 16}
    with pytest.raises(DJIPError, match="any_teacher=True"):
        DJIPTeacher(network, chosen, MEAN, STD)
    DJIPTeacher(network, chosen, MEAN, STD, any_teacher=True)(images)


def test_refuses_a_lens_of_another_normalisation(network: Network) -> None:
    chosen = lens()
    chosen.metadata = {"mean": [0.485, 0.456, 0.406]}
    with pytest.raises(DJIPError, match="fitted with mean"):
        DJIPTeacher(network, chosen, MEAN, STD)


def test_refuses_two_lenses(network: Network) -> None:
    with pytest.raises(DJIPError, match="has a lens already"):
        DJIPTeacher(DJIPTeacher(network, "identity", MEAN, STD), lens(), MEAN, STD)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda t: nn.Sequential(t, nn.Identity())])
def test_refuses_a_second_lens_around_a_wrapper(network: Network, wrap: Any) -> None:
    inner = wrap(DJIPTeacher(network, lens(), MEAN, STD))
    with pytest.raises(DJIPError, match="has a lens already"):
        DJIPTeacher(inner, lens(), MEAN, STD)


def test_what_the_lens_was_applied_to_is_taken_as_it_is(network: Network, images: Tensor) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    assert torch.equal(teacher(teacher.apply_lens(images))[0], teacher(images)[0])


@pytest.mark.parametrize("chosen", ["identity", lens()])
def test_a_part_is_replaced_in_the_teacher(network: Network, images: Tensor, chosen: Any) -> None:
    teacher = DJIPTeacher(network, chosen, MEAN, STD)
    teacher.fc = nn.Identity()
    assert network.fc is teacher.fc and teacher(images)[0].shape == (2, 4)
    assert not network.fc.training and len(teacher.features) == 3 and teacher.features
    teacher.head = nn.Linear(2, 2)  # which the teacher has not: the wrapper's own
    assert not hasattr(network, "head")


def test_a_method_of_the_teacher_may_be_wrapped(network: Network, images: Tensor) -> None:
    teacher = DJIPTeacher(network, lens(), MEAN, STD)
    expected = teacher.forward_features(images)
    former = teacher.forward_features
    teacher.forward_features = lambda x: former(x)
    assert torch.equal(teacher.forward_features(images), expected)


@pytest.mark.parametrize("script", [torch.jit.script, torch.jit.freeze])
@pytest.mark.parametrize("chosen", ["identity", lens()])
def test_torchscript_stands_behind_a_lens(images: Tensor, chosen: Any, script: Any) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16 * 18, 5)).eval()
    scripted = torch.jit.script(plain)
    expected = DJIPTeacher(plain, chosen, MEAN, STD)(images)
    scripted = scripted if script is torch.jit.script else script(scripted)
    answer = DJIPTeacher(scripted, chosen, MEAN, STD)(images)
    torch.testing.assert_close(answer, expected)


def test_an_exported_teacher_is_refused_with_the_cure(images: Tensor) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16 * 18, 5)).eval()
    exported = torch.export.export(plain, (images,)).module()
    with pytest.raises(DJIPError, match="has no eval mode; .*ClosedTeacher"):
        DJIPTeacher(exported, lens(), MEAN, STD)


def test_a_quantised_teacher_resumes(images: Tensor) -> None:
    def quantised(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 18 * 20, 5)).eval()
        return torch.ao.quantization.quantize_dynamic(network, {nn.Linear})

    first, second = (DJIPTeacher(quantised(seed), lens(), MEAN, STD) for seed in (0, 1))
    assert weight_hash(first.djip_teacher) != weight_hash(second.djip_teacher)
    whole, other = Distiller(first), Distiller(second)
    other.load_state_dict(whole.state_dict())
    assert torch.equal(second(images), first(images))


@pytest.mark.parametrize("chosen", ("cifar.lens", None, 3.0))
def test_refuses_what_is_no_lens(network: Network, chosen: Any) -> None:
    with pytest.raises(DJIPError, match="takes a JPEGLens"):
        DJIPTeacher(network, chosen, MEAN, STD)


def test_id_tells_lenses_apart(network: Network) -> None:
    ids = [
        DJIPTeacher(copy.deepcopy(network), chosen, MEAN, STD).djip_id
        for chosen in (lens(), lens(31.0), "identity")
    ]
    assert (
        len(set(ids)) == 3
        and ids[2] == "identity"
        and ids[0] in repr(DJIPTeacher(network, lens(), MEAN, STD))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_half_precision_leaves_the_tables_alone(dtype: torch.dtype, frozen: bool) -> None:
    lens = JPEGLens(torch.rand(2, 8, 8) * 20 + 0.1)
    tables = lens.q.detach().clone()
    lens = (lens.freeze() if frozen else lens).to(dtype)
    assert lens.q.dtype == torch.float32 and torch.equal(lens.q, tables)
    assert lens.double().q.dtype == torch.float64
