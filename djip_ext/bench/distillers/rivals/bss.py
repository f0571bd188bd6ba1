r"""BSS (AAAI 2019, arXiv 1805.05532): images on the teacher's boundary between two classes.

Of the images that the teacher classifies correctly the SAMPLES with the largest

    sum_{i != y} (p_t[i] - p_s[i])^2

are taken, a target class k != y is drawn with probabilities p_t[k] / (1 - p_t[y]), and the image
ascends z_k - z_y of the teacher,

    x <- clamp(x + STEP (z_y - z_k + 1e-4) g / |g|, -2.5, 2.5),     g = grad (z_k - z_y),

for at most STEPS steps, until the teacher's first class is another one.  With r(e) = WEIGHT
max(0, 1 - 4/3 e / E) in epoch e of E, the additional loss is

    r(e) mean_x sum_i -p_t[i] ln p_s[i]        at temperature T, over these images.

The paper also asks for images that the student classifies correctly; its published code does not.
STUDENT_CORRECT says which.  The code's loss has no factor T^2, and this one has none.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Training
from djip_ext.bench.distillers._precision import full_precision
from djip_ext.bench.distillers.rivals.adversarial import Adversarial

DEFAULTS = {
    "SAMPLES": 64,  # of each batch, at most
    "STEPS": 10,
    "STEP": 0.3,  # of a unit gradient, per unit of the gap in logits
    "CLAMP": 2.5,  # images stay within -CLAMP .. CLAMP, in normalised space
    "TEMPERATURE": 3.0,
    "WEIGHT": 2.0,  # at the start; falls to 0 at three quarters of the epochs
    "STUDENT_CORRECT": True,  # take only images that the student classifies correctly too
}
OVERSHOOT = 1e-4  # added to the gap, so that a step ends beyond the boundary


def base_samples(
    p_t: Tensor, p_s: Tensor, target: Tensor, most: int, student_correct: bool
) -> Tensor:
    """Indices of the images to start from, at most ``most``, the largest gap first.

    Shape:
        p_t, p_s: probabilities ``(B, C)``; target ``(B,)``.
    """
    right = p_t.argmax(1) == target
    if student_correct:
        right &= p_s.argmax(1) == target
    gaps = (p_t - p_s).square()
    score = gaps.sum(1) - gaps.gather(1, target[:, None])[:, 0]
    order = score.masked_fill(~right, -torch.inf).argsort(descending=True, stable=True)
    return order[: min(most, int(right.sum()))]


def draw_classes(p_t: Tensor, target: Tensor) -> Tensor:
    """A class (B,) other than ``target`` for each row, by the teacher's probabilities (B, C)."""
    others = p_t.clamp_min(torch.finfo(p_t.dtype).tiny)  # a saturated teacher leaves zeros
    return torch.multinomial(others.scatter(1, target[:, None], 0.0), 1)[:, 0]


def boundary_images(
    image: Tensor,
    target: Tensor,
    towards: Tensor,
    teacher: Callable[[Tensor], Tensor],
    node: CfgNode,
) -> Tensor:
    """``image`` moved until the teacher's first class is not ``target`` any more.

    Args:
        image: normalised, (B, 3, H, W), which the teacher classifies correctly.
        target, towards: the labels and the drawn classes, (B,).
        teacher: images to logits.
        node: ``cfg.BSS``.
    """
    x = image.detach()
    moving = torch.arange(len(x), device=x.device)
    for _ in range(node.STEPS):
        with torch.enable_grad():
            at = x[moving].requires_grad_()
            z = teacher(at).float()
            gap = (z.gather(1, target[moving, None]) - z.gather(1, towards[moving, None]))[:, 0]
            (slope,) = torch.autograd.grad(-gap.sum(), at)
        still = z.argmax(1) == target[moving]
        if not still.any():
            break
        length = slope.flatten(1).norm(dim=1).clamp_min(1e-12)
        scale = node.STEP * (gap.detach() + OVERSHOOT) / length
        moved = (at.detach() + scale[:, None, None, None] * slope).clamp(-node.CLAMP, node.CLAMP)
        x = x.index_copy(0, moving[still], moved[still].to(x.dtype))
        moving = moving[still]
    return x


@full_precision
def soft_cross_entropy(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    """Mean over images of sum_i -p_t[i] ln p_s[i], both at ``temperature``, without T^2.

    Shape:
        z_s, z_t: logits ``(B, C)``; output: scalar.
    """
    p_t = (z_t / temperature).softmax(1)
    return -(p_t * torch.log_softmax(z_s / temperature, dim=1)).sum(1).mean()


class BSS(Adversarial):
    """A distiller and :func:`soft_cross_entropy` over boundary supporting samples."""

    def __init__(self, wrapped: Training, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(wrapped, teacher)
        self.node = cfg.BSS
        self.epochs: int = cfg.SOLVER.EPOCHS

    def weight(self, epoch: int) -> float:
        """r of ``epoch``, counted from 1."""
        weight: float = self.node.WEIGHT * max(0.0, 1 - 4 / 3 * epoch / self.epochs)
        return weight

    def adversarial_loss(self, image: Tensor, target: Tensor, logits: Tensor, epoch: int) -> Tensor:
        node = self.node
        weight = self.weight(epoch)
        none = logits.new_zeros((), dtype=torch.float32)
        if weight == 0:
            return none
        with torch.no_grad():
            p_t = self.teacher_logits(image).float().softmax(1)
            p_s = logits.float().softmax(1)
            chosen = base_samples(p_t, p_s, target, node.SAMPLES, node.STUDENT_CORRECT)
        if len(chosen) == 0:
            return none
        labels = target[chosen]
        towards = draw_classes(p_t[chosen], labels)
        images = boundary_images(image[chosen], labels, towards, self.teacher_logits, node)
        with torch.no_grad():
            z_t = self.teacher_logits(images)
        z_s = self.student(images)[0]
        loss: Tensor = weight * soft_cross_entropy(z_s, z_t, node.TEMPERATURE)
        return loss
