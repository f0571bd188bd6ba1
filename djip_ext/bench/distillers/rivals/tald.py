r"""TALD (WACV 2023): match the student to the teacher over particles around an image.

Reconstructed from a description of the paper's settings; where it is silent, from the Stein step
that its authors' group published for semi-supervised learning: the start of a particle, the probe
radius 10 and the normalised direction.

Around each of the first IMAGES of a batch stand PARTICLES particles x + d, with d uniform and of
length 1.  One step of Stein variational gradient descent ascends

    l(d) = MSE(softmax t(x + XI d), softmax t(x)),
    phi(d_i) = (1/m) sum_j [ k(d_j, d_i) grad l(d_j) + grad_{d_j} k(d_j, d_i) ],
    k(a, b) = exp(-|a - b|^2 / (2 sigma^2)),

over the m particles of the batch; at the published sigma, 1e-3, particles of length 1 hardly repel
each other.  The adversarial image is clamp(x + EPS phi / |phi|, -2.5, 2.5), in normalised space.
The additional loss, over adversarial and clean images i with labels y_i, is

    WEIGHT * mean_i (CE(s(x_i), y_i) - CE(t(x_i), y_i))^2.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Training
from djip_ext.bench.distillers._precision import full_precision
from djip_ext.bench.distillers.rivals.adversarial import Adversarial

DEFAULTS = {
    "IMAGES": 10,  # of each batch, the first ones
    "PARTICLES": 4,  # n, of each image
    "SIGMA": 1e-3,  # of the kernel
    "EPS": 5e-4,  # length of a perturbation, in normalised space
    "XI": 10.0,  # radius at which the teacher is asked for the direction
    "CLAMP": 2.5,  # adversarial images stay within -CLAMP .. CLAMP, in normalised space
    "WEIGHT": 0.05,  # published: .01 to .1
}


def stein_direction(d: Tensor, slope: Tensor, sigma: float) -> Tensor:
    """phi of every particle: a kernel-weighted ascent, and repulsion.

    Shape:
        d, slope: particles and the gradient there of what they ascend, ``(m, D)``; output the same.
    """
    gaps = d[:, None] - d[None]
    k = torch.exp(-gaps.square().sum(2) / (2 * sigma**2))
    # grad_{d_j} k(d_j, d_i) = (d_i - d_j) k / sigma^2
    repulsion = (gaps * k[:, :, None]).sum(1) / sigma**2
    return (k @ slope + repulsion) / len(d)


def unit(d: Tensor) -> Tensor:
    """``d`` (m, ...) with rows of length 1; a row of zeros stays."""
    return F.normalize(d.flatten(1), dim=1).view_as(d)


def adversarial_images(
    image: Tensor,
    start: Tensor,
    teacher: Callable[[Tensor], Tensor],
    node: CfgNode,
) -> Tensor:
    """One Stein step from ``start``, around ``image``.

    Args:
        image: normalised, (m, 3, H, W); an image stands there once per particle.
        start: directions of length 1, same shape.
        teacher: images to logits.
        node: ``cfg.TALD``.
    """
    d = start.detach().requires_grad_()
    with torch.no_grad():
        p = teacher(image).float().softmax(1)
    with torch.enable_grad():
        near = teacher(image + node.XI * d).float().softmax(1)
        # MSE over one particle's classes: particles do not share a gradient.
        distance = (near - p).square().mean(1).sum()
        (slope,) = torch.autograd.grad(distance, d)
    phi = stein_direction(d.detach().flatten(1), slope.flatten(1), node.SIGMA).view_as(image)
    adversarial: Tensor = (image + node.EPS * unit(phi)).clamp(-node.CLAMP, node.CLAMP)
    return adversarial


@full_precision
def tald_loss(z_s: Tensor, z_t: Tensor, target: Tensor) -> Tensor:
    """Mean over images of (CE(z_s, y) - CE(z_t, y))^2.

    Shape:
        z_s, z_t: logits ``(B, C)``; target ``(B,)``; output: scalar.
    """
    gaps = F.cross_entropy(z_s, target, reduction="none") - F.cross_entropy(
        z_t, target, reduction="none"
    )
    return gaps.square().mean()


class TALD(Adversarial):
    """A distiller and :func:`tald_loss` over clean images and particles around them."""

    def __init__(self, wrapped: Training, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(wrapped, teacher)
        self.node = cfg.TALD

    def adversarial_loss(self, image: Tensor, target: Tensor, logits: Tensor, epoch: int) -> Tensor:
        node = self.node
        clean = image[: node.IMAGES]
        around = clean.repeat(node.PARTICLES, 1, 1, 1)
        start = unit(torch.rand_like(around) - 0.5)
        adversarial = adversarial_images(around, start, self.teacher_logits, node)
        images = torch.cat([adversarial, clean])
        labels = target[: node.IMAGES].repeat(node.PARTICLES + 1)
        with torch.no_grad():
            z_t = self.teacher_logits(images)
        z_s = self.student(images)[0]
        loss: Tensor = node.WEIGHT * tald_loss(z_s, z_t, labels)
        return loss
