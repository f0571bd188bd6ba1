r"""The codec with rounding for the soft quantizer, and a gradient taken straight through it.

With n = round(z / q) clamped to -L .. L, the value is n q, as in a JPEG file, and the gradients are
those of n q with n held constant, but that z passes on as if nothing had been rounded (Bengio et
al., 2013; for a step that is learned, LSQ, Esser et al., ICLR 2020):

    dQ/dz = 1,    dQ/dq = n - z / q        within the range;    dQ/dz = 0, dQ/dq = n beyond it.

The soft quantizer tells each step how its neighbourhood would change the image; this one tells it
how much more of a coefficient would be lost, whatever kappa is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.lens.jpeg_lens import JPEGLens, affine, check_image, tile, undo_affine
from djip_ext.ops.dct import coefficients_to_rgb, pad_to_blocks, rgb_to_coefficients


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor, max_index: int) -> Tensor:
        u = z / q
        n = u.round().clamp_(-max_index, max_index)
        within = u.abs() <= max_index
        ctx.save_for_backward(within, torch.where(within, n - u, n))
        ctx.shape = q.shape
        return n * q

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        within, by_q = ctx.saved_tensors
        return grad * within, (grad * by_q).sum_to_size(ctx.shape), None


def straight_through_quantize(z: Tensor, q: Tensor, max_index: int) -> Tensor:
    """Round ``z`` to the multiples -L q .. L q, with the gradients of this module's head.

    Shape: z any; q broadcastable to z; the output has the shape of z.
    """
    rounded: Tensor = _StraightThrough.apply(z, q, max_index)
    return rounded


class StraightThroughLens(nn.Module):
    """``lens`` with its steps, rounding hard, and a straight-through gradient; it shares ``q``.

    Args:
        lens: whose tables are learned; its sharpness plays no part.

    Shape: as :class:`~djip_ext.lens.jpeg_lens.JPEGLens` with ``gain`` and ``offset``.

    Raises:
        DJIPError: an image batch of another shape.
    """

    def __init__(self, lens: JPEGLens) -> None:
        super().__init__()
        self.lens = lens

    def forward(self, image: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
        check_image(image)
        with torch.autocast(image.device.type, enabled=False):
            image = image if image.dtype == torch.float64 else image.float()
            height, width = image.shape[2:]
            z = rgb_to_coefficients(affine(pad_to_blocks(image), gain, offset))
            z = straight_through_quantize(z, tile(self.lens.q, z), self.lens.max_index)
            seen = undo_affine(coefficients_to_rgb(z), gain, offset)
            return seen[:, :, :height, :width].contiguous()  # a copy where something is cut off
