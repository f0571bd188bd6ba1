"""FitNets (Romero et al., *FitNets: Hints for Thin Deep Nets*, ICLR 2015), trained in one stage."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.errors import DJIPError

from ._base import Distiller, Output
from ._precision import full_precision
from ._probe import probe

DEFAULTS = {
    "HINT_LAYER": 2,
    "INPUT_SIZE": (32, 32),
    "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 100.0},
}

hint_loss = full_precision(F.mse_loss)


class ConvReg(nn.Module):
    """Maps a student's map to the shape of a teacher's: convolution, batch normalisation, ReLU.

    Twice the teacher's size is halved by a stride, half of it is doubled by a transposed
    convolution, any larger size is cut down by a kernel without padding.

    Shape:
        shape_s, shape_t: ``(C, H, W)``; input ``(B, *shape_s)``, output ``(B, *shape_t)``.

    Raises:
        DJIPError: the student's map is smaller than the teacher's, and not by half.
    """

    def __init__(self, shape_s: tuple[int, int, int], shape_t: tuple[int, int, int]) -> None:
        super().__init__()
        (c_s, h_s, w_s), (c_t, h_t, w_t) = shape_s, shape_t
        self.conv: nn.Module
        if h_s == 2 * h_t:
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif 2 * h_s == h_t:
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t:
            self.conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        else:
            raise DJIPError(
                f"FITNET cannot regress a {h_t}x{w_t} map from a {h_s}x{w_s} one; choose another "
                "FITNET.HINT_LAYER"
            )
        self.bn = nn.BatchNorm2d(c_t)

    def forward(self, f: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(f)))


class FitNet(Distiller):
    """The student predicts one map of the teacher, the hint, through a trained regressor."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.FITNET.LOSS.CE_WEIGHT
        self.feat_loss_weight: float = cfg.FITNET.LOSS.FEAT_WEIGHT
        self.hint_layer = cfg.FITNET.HINT_LAYER
        maps_s, maps_t = (
            probe(network, cfg.FITNET.INPUT_SIZE)["feats"] for network in (student, teacher)
        )
        if not 0 <= self.hint_layer < min(len(maps_s), len(maps_t)):
            raise DJIPError(
                f"FITNET.HINT_LAYER is {self.hint_layer}; the student has {len(maps_s)} maps and "
                f"the teacher {len(maps_t)}, counted from 0"
            )
        shape_s, shape_t = maps_s[self.hint_layer].shape[1:], maps_t[self.hint_layer].shape[1:]
        self.conv_reg = ConvReg(shape_s, shape_t)

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        prediction = self.conv_reg(student.features["feats"][self.hint_layer])
        return self.feat_loss_weight * hint_loss(
            prediction, teacher.features["feats"][self.hint_layer]
        )
