"""Factor transfer (Kim et al., *Paraphrasing Complex Network*, NeurIPS 2018).

The settings are RepDistiller's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange
from yacs.config import CfgNode

from djip_ext.errors import DJIPError
from djip_ext.utils.distributed import rank

from ._base import Distiller, Output
from ._precision import full_precision
from ._probe import probe
from .at import attention_map, to_common_size

DEFAULTS = {
    "RATE": 0.5,  # k: channels of a factor per channel of the teacher's last map
    "INPUT_SIZE": (32, 32),
    "PRETRAIN": {"EPOCHS": 30, "LR": 0.01, "MOMENTUM": 0.9, "WEIGHT_DECAY": 0.0005},
    "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 200.0},
}

reconstruction_loss = full_precision(F.mse_loss)


@full_precision
def ft_loss(factor_s: Tensor, factor_t: Tensor) -> Tensor:
    """Mean absolute difference of the normalised channel means of the squared factors.

    Shape:
        factor_s, factor_t: ``(B, C, H, W)``, the larger is pooled to the smaller; output: scalar.
    """
    factor_s, factor_t = to_common_size(factor_s, factor_t)
    return F.l1_loss(attention_map(factor_s, 2), attention_map(factor_t, 2))


def _encoder(in_channels: int, out_channels: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c_in, c_out in (
        (in_channels, in_channels),
        (in_channels, out_channels),
        (out_channels, out_channels),
    ):
        layers.append(nn.Conv2d(c_in, c_out, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(c_out))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


def _decoder(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c_in, c_out in (
        (in_channels, in_channels),
        (in_channels, out_channels),
        (out_channels, out_channels),
    ):
        layers += [nn.ConvTranspose2d(c_in, c_out, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An auto-encoder of the teacher's map; its code, the factor, is what the student matches."""

    def __init__(self, channels: int, factor_channels: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factor_channels, batch_norm=False)
        self.decoder = _decoder(factor_channels, channels)

    def forward(self, f_t: Tensor) -> Tensor:
        """The reconstruction of ``f_t``, same shape."""
        reconstruction: Tensor = self.decoder(self.encoder(f_t))
        return reconstruction


def _average_gradients(module: nn.Module) -> None:
    """Average over the processes of a distributed run.

    Pretraining happens outside of DistributedDataParallel.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for p in module.parameters():
            assert p.grad is not None  # the error was just propagated back
            torch.distributed.all_reduce(p.grad)
            p.grad /= torch.distributed.get_world_size()


class FT(Distiller):
    """A trained translator turns the student's last map into the factor of the teacher's.

    The paraphraser is trained first, by :meth:`pretrain`, and then frozen: it is no part of the
    learnable parameters.

    Raises:
        DJIPError: ``FT.RATE`` leaves the factor no channel.
    """

    frozen = ("teacher.", "paraphraser.")

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.FT.LOSS.CE_WEIGHT
        self.feat_loss_weight: float = cfg.FT.LOSS.FEAT_WEIGHT
        self.schedule = cfg.FT.PRETRAIN
        c_s, c_t = (
            probe(network, cfg.FT.INPUT_SIZE)["feats"][-1].shape[1]
            for network in (student, teacher)
        )
        factor_channels = int(c_t * cfg.FT.RATE)
        if factor_channels < 1:
            raise DJIPError(
                f"FT.RATE is {cfg.FT.RATE}, which leaves none of the {c_t} channels of the "
                f"teacher's last map; set it to 1/{c_t} or more"
            )
        self.translator = _encoder(c_s, factor_channels, batch_norm=True)
        self.paraphraser = Paraphraser(c_t, factor_channels)
        self.pretrained = False

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.pretrained)

    def set_extra_state(self, state: Tensor) -> None:
        self.pretrained = bool(state)

    def pretrain(
        self,
        loader: Iterable[tuple[Tensor, ...]],
        state: dict[str, Any] | None = None,
        keep: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[float]:
        """Train the paraphraser to reconstruct the teacher's last map, as ``cfg.FT.PRETRAIN`` says.

        A trainer calls this once, on its device, before the first epoch; a loaded checkpoint need
        not repeat it.

        Args:
            loader: training batches; the first item of each is the image.
            state: what ``keep`` was last given, to go on from there; the weights and the random
                state are the caller's to restore.
            keep: called after every epoch with ``errors``, those of the epochs so far, and the
                ``optimizer``'s state.

        Returns:
            The mean reconstruction error of each epoch.
        """
        device = next(self.paraphraser.parameters()).device
        optimizer = torch.optim.SGD(
            self.paraphraser.parameters(),
            lr=self.schedule.LR,
            momentum=self.schedule.MOMENTUM,
            weight_decay=self.schedule.WEIGHT_DECAY,
        )
        self.teacher.eval()
        history: list[float] = []
        if state is not None:
            history = list(state["errors"])
            optimizer.load_state_dict(state["optimizer"])
        for epoch in trange(
            len(history) + 1,
            self.schedule.EPOCHS + 1,
            desc="pretraining",
            unit="epoch",
            leave=False,
            disable=rank() > 0,
        ):
            errors = []
            for image, *_ in loader:
                error = self._reconstruction_error(image.to(device))
                optimizer.zero_grad()
                error.backward()  # type: ignore[no-untyped-call]
                _average_gradients(self.paraphraser)
                optimizer.step()
                errors.append(error.detach())
            history.append(torch.stack(errors).mean().item())
            self.pretrained = epoch == self.schedule.EPOCHS
            if keep is not None:
                keep({"errors": history, "optimizer": optimizer.state_dict()})
        self.pretrained = True
        return history

    def _reconstruction_error(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            f_t = self.teacher(image)[1]["feats"][-1]
        return reconstruction_loss(self.paraphraser(f_t), f_t)

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        """Raises DJIPError while the paraphraser is untrained."""
        if not self.pretrained:
            raise DJIPError(
                "FT needs a trained paraphraser; call pretrain(loader) before the first epoch"
            )
        factor_s = self.translator(student.features["feats"][-1])
        with torch.no_grad():
            factor_t = self.paraphraser.encoder(teacher.features["feats"][-1])
        return self.feat_loss_weight * ft_loss(factor_s, factor_t)
