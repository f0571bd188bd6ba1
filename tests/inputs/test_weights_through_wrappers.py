"""A lens knows its teacher through whatever is wrapped around it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from djip_ext import DJIPError, DJIPTeacher, JPEGLens
from djip_ext.inputs.wrappers import plain_state, unwrap
from djip_ext.lens.io import weight_hash

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


class DistributedDataParallel(nn.Module):
    """What the real one is to a state dict; it needs a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Part(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.features, self.fc = wrap(nn.Conv2d(3, 4, 3)), nn.Linear(4, 5)


def average(network: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(network)


WRAPS = {
    "compile": lambda n: torch.compile(n, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "compile(DataParallel)": lambda n: torch.compile(nn.DataParallel(n), backend="eager"),
    "DataParallel(compile)": lambda n: nn.DataParallel(torch.compile(n, backend="eager")),
    "DataParallel twice": lambda n: nn.DataParallel(nn.DataParallel(n)),
    "average": average,
    "average(DataParallel)": lambda n: average(nn.DataParallel(n)),
}


@pytest.mark.parametrize("name", WRAPS)
def test_the_hash_is_that_of_the_plain_network(name: str) -> None:
    plain, wrapped = network(), WRAPS[name](network())
    assert weight_hash(wrapped) == weight_hash(plain)
    assert weight_hash(wrapped.state_dict()) == weight_hash(plain)
    inner = unwrap(wrapped)
    assert type(inner) is nn.Sequential and list(plain_state(wrapped)) == list(plain.state_dict())


@pytest.mark.parametrize("name", ["compile", "DataParallel", "DataParallel twice"])
def test_a_part_that_is_wrapped_alone_is_seen_through(name: str) -> None:
    plain = Part(lambda part: part)
    wrapped = Part(WRAPS[name])
    unwrap(wrapped.features).load_state_dict(plain.features.state_dict())
    wrapped.fc.load_state_dict(plain.fc.state_dict())
    assert weight_hash(wrapped) == weight_hash(plain)
    assert weight_hash(nn.DataParallel(wrapped)) == weight_hash(plain)


def test_plain_networks_keep_the_hash_they_had() -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(2.0)
    assert weight_hash(layer) == "bb01e13621c2b53e"
    holder = nn.ModuleDict({"module": layer})  # a name of one's own is no wrapper
    assert weight_hash(holder) != weight_hash(layer)


@pytest.mark.parametrize("name", ["compile", "DataParallel", "average"])
@pytest.mark.parametrize("fitted_on_wrapped", [False, True])
def test_a_lens_fits_either_way_round(name: str, fitted_on_wrapped: bool) -> None:
    plain, wrapped = network(), WRAPS[name](network())
    fitted, used = (wrapped, plain) if fitted_on_wrapped else (plain, wrapped)
    lens = JPEGLens(8.0)
    lens.metadata = {"teacher_hash": weight_hash(fitted)}
    DJIPTeacher(used, lens, MEAN, STD)


def test_other_weights_are_still_refused_behind_a_wrapper() -> None:
    lens = JPEGLens(8.0)
    lens.metadata = {"teacher_hash": weight_hash(network())}
    other = network()
    other[3].bias.data += 1e-3
    with pytest.raises(DJIPError, match="other|this teacher has"):
        DJIPTeacher(nn.DataParallel(other), lens, MEAN, STD)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_another_teacher_and_the_message_says_so(dtype: torch.dtype) -> None:
    plain = network()
    rounded = copy.deepcopy(plain).to(dtype)
    lens = JPEGLens(8.0)
    lens.metadata = {"teacher_hash": weight_hash(plain)}
    with pytest.raises(DJIPError, match=rf"in {str(dtype)[6:]}, where rounded.*any_teacher=True"):
        DJIPTeacher(rounded, lens, MEAN, STD)
    DJIPTeacher(rounded, lens, MEAN, STD, any_teacher=True)
    lens.metadata = {"teacher_hash": weight_hash(rounded)}
    with pytest.raises(DJIPError, match=f"rounded to {str(dtype)[6:]} are those of the lens"):
        DJIPTeacher(plain, lens, MEAN, STD)


def test_packed_weights_are_told_apart() -> None:
    def quantised(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
        return torch.ao.quantization.quantize_dynamic(plain, {nn.Linear})

    assert weight_hash(quantised(0)) == weight_hash(quantised(0)) != weight_hash(quantised(1))


def test_a_network_without_weights_to_compare_is_not_taken_for_another() -> None:
    frozen = torch.jit.freeze(torch.jit.script(network()))
    assert weight_hash(frozen) == "" == weight_hash(nn.Flatten())
    known = JPEGLens(4.0)
    known.metadata = {"teacher": "vgg", "teacher_hash": weight_hash(network())}
    with pytest.raises(DJIPError, match="shows no weights to compare; pass any_teacher=True"):
        DJIPTeacher(frozen, known, MEAN, STD)
    DJIPTeacher(frozen, known, MEAN, STD, any_teacher=True)
