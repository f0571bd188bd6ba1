"""The lens: a differentiable JPEG codec with two quantization tables, 128 numbers, in front of a network."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.ops import exportable
from djip_ext.ops.dct import BLOCK, coefficients_to_rgb, pad_to_blocks, rgb_to_coefficients
from djip_ext.ops.fused import Lens, Plan
from djip_ext.ops.quantizer import hard_quantize, soft_quantize

Q_MIN, Q_MAX = 1e-5, 255.0  # JPEG-DL's range of a step


class JPEGLens(nn.Module):
    """J_d(x, w): images through colour transform, 8x8 DCT, soft quantization and back (arXiv 2410.07081).

    Args:
        q: the tables w: a number (all steps equal) or a tensor (2, 8, 8), luma first, chroma second (shared by Cb and
            Cr), entry [v, u] for vertical frequency v and horizontal frequency u.  Kept within [1e-5, 255].
        alpha: sharpness of the soft quantizer, the same for all steps.  JPEG-DL has 5 on CIFAR.
        max_index: L; coefficient (v, u) saturates at L q[v, u].
        window: ``None`` for the exact sum, 5 for the bins that JPEG-DL's code sums.
        kappa: when given, alpha is tied to the step, alpha = kappa / q^2 (JPEG-DL has 0.7 on ImageNet).
        hard: round instead (alpha -> infinity); the tables then receive no gradient.
        clamp: clamp the result to [0, 255]; off by default, since it zeroes gradients.

    Shape: float (B, 3, H, W) in [0, 255], any H and W -> the same; float32 whatever autocast says (float64 stays).

    The steps may be changed at any time; on a GPU under ``torch.no_grad()``, not through ``.data``, whose changes torch does not count.

    Raises:
        DJIPError: tables of another shape or not positive, an image batch that is not (B, 3, H, W) or is scaled to
            [0, 1].

    Example:
        >>> lens = JPEGLens(q=4.0)
        >>> lens(torch.full((1, 3, 32, 32), 100.0)).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        q: float | Tensor = 1.0,
        alpha: float = 5.0,
        max_index: int = 1023,
        window: int | None = None,
        kappa: float | None = None,
        hard: bool = False,
        clamp: bool = False,
    ) -> None:
        super().__init__()
        tables = torch.as_tensor(q, dtype=torch.float32).detach().clone()
        tables = tables.expand(2, BLOCK, BLOCK).clone() if tables.dim() == 0 else tables
        if tables.shape != (2, BLOCK, BLOCK):
            raise DJIPError(
                f"the tables have shape {tuple(tables.shape)}; a lens takes a number or (2, 8, 8): luma, chroma"
            )
        if not bool(torch.isfinite(tables).all() and (tables > 0).all()):
            raise DJIPError(
                "the tables hold steps that are not positive numbers; every q must lie in (0, 255]"
            )
        for name, value in (("alpha", alpha), ("kappa", 1.0 if kappa is None else kappa)):
            if value is None or not value > 0:
                raise DJIPError(f"{name} is {value}; the sharpness must be positive")
        if max_index < 1 or (window is not None and (window < 1 or window % 2 == 0)):
            raise DJIPError(
                f"max_index is {max_index} and window {window}; L must be at least 1 and the window odd or None"
            )
        self.q = nn.Parameter(tables.clamp(Q_MIN, Q_MAX))
        self.alpha, self.kappa = alpha, kappa
        self.max_index, self.window = max_index, window
        self.hard, self.clamp = hard, clamp
        self.metadata: dict[str, Any] = {}  # what it was fitted for; written and read with the file
        self._range_checked = False
        self._compiled = False
        self._made: tuple[Any, Any, Plan] | None = None

    # Of a frozen lens, for tracers; with the tensor they were made from and its count of changes.
    _constants: tuple[exportable.Constants, Tensor, int] | None = None

    @classmethod
    def jpeg_dl(
        cls, q: float | Tensor = 1.0, dataset: Literal["cifar", "imagenet"] = "cifar"
    ) -> "JPEGLens":
        """The lens as JPEG-DL's published code computes it: five bins, L = 127, alpha 5 or tied with kappa 0.7."""
        return cls(
            q, alpha=5.0, max_index=127, window=5, kappa=0.7 if dataset == "imagenet" else None
        )

    @classmethod
    def from_jpeg(cls, path: str | os.PathLike[str], hard: bool = True) -> "JPEGLens":
        """The quantization tables of a JPEG file, a camera's or a service's, as a lens.

        Progressive files have the same tables and are read alike.  The lens works 4:4:4: for a file
        with subsampled chroma, or a grey one, a warning says what it cannot show.

        Args:
            hard: round as the file does and clamp to [0, 255] as its decoder does; otherwise soft
                with alpha = 5 / q^2, where a fit can start.

        Raises:
            DJIPError: no JPEG file, no YCbCr in it, or different tables for Cb and Cr.
        """
        from djip_ext.lens.jpeg_file import from_jpeg

        return from_jpeg(path, hard)

    def jpeg_tables(self) -> list[list[int]]:
        """The tables as a JPEG file holds them: two lists of 64 integers in 1 .. 255, luma and chroma.

        In natural order (row by row, not zigzag), as the ``qtables`` of Pillow's ``Image.save`` takes
        them.  Steps are rounded to the nearest integer, a half to the nearest even one, and a step
        below 1 becomes 1; so the file shows the *hard* lens of these integers, without saturation.
        """
        from djip_ext.lens.jpeg_file import jpeg_tables

        return jpeg_tables(self.q)

    def sharpness(self) -> Tensor | float:
        """alpha of every step: the fixed number, or (2, 8, 8) when it is tied to q."""
        return self.alpha if self.kappa is None else self.kappa / self.q.square()

    def forward(self, image: Tensor) -> Tensor:
        self._check(image)
        return self.look(image, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))

    def look(self, x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
        """What a network sees of x (B, 3, H, W), where ``gain x + offset``, by channel, are the pixels in [0, 255]."""
        if exportable.is_tracing():
            return self._traced(x, gain, offset)
        return self._look(x, gain, offset)

    def _traced(self, x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
        """As :meth:`look`, in operations that a tracer can record; the tables become constants."""
        x = x if x.dtype == torch.float64 else x.float()
        pixels = _affine(pad_to_blocks(x), gain, offset)
        if self.hard:
            seen = exportable.through_hard(pixels, self.q, self.max_index)
        else:
            seen = exportable.through(pixels, self._known_constants())
        seen = seen[:, :, : x.shape[2], : x.shape[3]]
        seen = seen.clamp(0, 255) if self.clamp else seen
        inverse = [1 / g for g in gain]
        return _affine(seen, inverse, [-o / g for g, o in zip(gain, offset, strict=True)])

    def _known_constants(self) -> exportable.Constants:
        if self._constants is None:
            raise DJIPError(
                "an exported lens holds its tables as constants; call lens.freeze() first"
            )
        constants, q, version = self._constants
        if not torch.compiler.is_dynamo_compiling() and _changes(q) > version:
            raise DJIPError(
                "the tables were changed after lens.freeze(); call it again, then export"
            )
        return constants

    def _keep_constants(self) -> None:
        q = self._buffers.get("q")
        if q is None or self.hard or q.is_meta:
            self._constants = None
        else:
            made = exportable.Constants.of(q, self.alpha, self.kappa, self.max_index, self.window)
            self._constants = (made, q, _changes(q))

    @torch.compiler.disable  # a network compiled around the lens goes on behind it
    def _look(self, x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            height, width = x.shape[2:]
            padded = pad_to_blocks(x)
            if self.hard:
                z = rgb_to_coefficients(_affine(padded, gain, offset))
                z = hard_quantize(z, self._tile(self.q, z), self.max_index)
                seen = _affine(
                    coefficients_to_rgb(z),
                    [1 / g for g in gain],
                    [-o / g for g, o in zip(gain, offset)],
                )
            else:
                seen = Lens.apply(padded, self.q, self._plan(gain, offset, padded), self._compiled)
            if padded is not x:
                seen = seen[:, :, :height, :width]
            if self.clamp:
                low, high = (
                    x.new_tensor([(end - o) / g for g, o in zip(gain, offset)])[:, None, None]
                    for end in (0.0, 255.0)
                )
                seen = seen.clamp(low, high)
            return seen

    def compile(self) -> "JPEGLens":
        """Let torch.compile fuse what happens to a coefficient: worth its 10 to 40 seconds, once a process, for a long training run.

        Takes the place of ``nn.Module.compile``, for which the matrix products around it would be in the way; returns the lens itself.
        """
        self._compiled = True
        return self

    def _plan(self, gain: Sequence[float], offset: Sequence[float], x: Tensor) -> Plan:
        """The kernel's tables, made anew only when the steps or the images' format have changed."""
        q = self.q.detach()
        asked = (
            self.alpha,
            self.kappa,
            self.max_index,
            self.window,
            tuple(gain),
            tuple(offset),
            x.shape[3],
            x.dtype,
            q.device,
        )
        if self._made is None or self._made[0] != asked or not _unchanged(self._made[1], q):
            plan = Plan.of(
                q,
                self.alpha,
                self.kappa,
                self.max_index,
                self.window,
                gain,
                offset,
                x.shape[3],
                x.dtype,
            )
            self._made = asked, _mark(q), plan
        return self._made[2]

    @staticmethod
    def _tile(table: Tensor, z: Tensor) -> Tensor:
        """Lay (2, 8, 8) out over the coefficients: (3, H, W), the second table for Cb and for Cr."""
        rows, columns = z.shape[2] // BLOCK, z.shape[3] // BLOCK
        return table.to(z)[[0, 1, 1]].repeat(1, rows, columns)

    def _check(self, image: Tensor) -> None:
        if exportable.is_tracing():
            return
        if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise DJIPError(
                f"a lens takes float images (B, 3, H, W) in [0, 255], got {image.dtype} {tuple(image.shape)}"
            )
        if self._range_checked or image.numel() == 0:
            return
        low, high = image.detach().amin().item(), image.detach().amax().item()
        if high <= 1.0 and low >= -1.0:
            if high > low:
                raise DJIPError(
                    f"the images lie in [{low:.2f}, {high:.2f}]; a lens takes [0, 255]: multiply by 255"
                )
            return  # one flat black image tells nothing: look again next time
        self._range_checked = True  # once: the look costs a GPU a stall

    @torch.no_grad()
    def dead(self) -> Tensor:
        """Which steps have kappa = alpha q^2 < 1: the exact quantizer is then the identity to 3e-4 q, and the step has no
        gradient but through saturation.  bool (2, 8, 8), all False for a hard lens."""
        return torch.full_like(self.q, not self.hard, dtype=torch.bool) & (
            self.sharpness() * self.q.square() < 1
        )

    @torch.no_grad()
    def health(self, image: Tensor) -> dict[str, float]:
        """What the tables do to ``image`` (B, 3, H, W) in [0, 255].

        Returns:
            ``dead``: how many of the 128 steps are :meth:`dead`.
            ``saturated``: fraction of the coefficients beyond the range, |z| > L q.
            ``zeroed``: fraction of the coefficients with 0.5 < |z| that come out as |Q(z)| < 0.5.
        """
        z = rgb_to_coefficients(pad_to_blocks(image.float()))
        q = self._tile(self.q, z)
        alpha = self._tile(torch.as_tensor(self.sharpness()).expand_as(self.q), z)
        out = (
            hard_quantize(z, q, self.max_index)
            if self.hard
            else soft_quantize(z, q, alpha, self.max_index, self.window)
        )
        visible = z.abs() > 0.5
        return {
            "dead": int(self.dead().sum()),
            "saturated": (z.abs() > self.max_index * q).float().mean().item(),
            "zeroed": ((out.abs() < 0.5) & visible).sum().item() / max(1, visible.sum().item()),
        }

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "JPEGLens":
        """Follow ``.to(device)`` and ``.double()``, but never ``.half()`` or ``.bfloat16()``: rounded tables are another lens."""
        before = self.q.detach()
        super()._apply(fn, *args, **kwargs)
        if self.q.dtype in (torch.float16, torch.bfloat16):
            self.q.data = before.to(self.q.device)
        self._keep_constants()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep_constants()  # a copy counts its changes anew

    def freeze(self) -> "JPEGLens":
        """Turn the tables from a parameter into a buffer that is not saved with the network; returns the lens itself."""
        if "q" in self._parameters:
            tables = self._parameters.pop("q").detach()
            self.register_buffer("q", tables, persistent=False)
        self._keep_constants()
        return self

    def unfreeze(self) -> "JPEGLens":
        """Make the tables a parameter that takes gradients again, whatever froze them; returns the lens itself."""
        if "q" in self._buffers:
            tables = self.q
            del self.q
            self.q = nn.Parameter(tables)
        self._constants = None
        return self.requires_grad_(True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tables, settings and ``metadata`` to one safetensors file (see :mod:`djip_ext.lens.io`)."""
        from djip_ext.lens.io import save_lens

        save_lens(self, path)

    def extra_repr(self) -> str:
        sharp = f"alpha={self.alpha}" if self.kappa is None else f"kappa={self.kappa}"
        kind = "hard" if self.hard else f"{sharp}, window={self.window}"
        low, high = self.q.detach().amin().item(), self.q.detach().amax().item()
        return f"q in [{low:.3g}, {high:.3g}], {kind}, max_index={self.max_index}"


def _mark(q: Tensor) -> Any:
    """What tells later whether q is still the same: on a CPU its values, elsewhere, where a look would wait, torch's count of changes."""
    if q.device.type == "cpu":
        return q.clone()
    return None if q.is_inference() else (q.data_ptr(), q._version)


def _changes(q: Tensor) -> int:
    """How often torch saw q change; 0 where it does not count."""
    return 0 if q.is_inference() else q._version


def _unchanged(mark: Any, q: Tensor) -> bool:
    return torch.equal(mark, q) if q.device.type == "cpu" else mark is not None and mark == _mark(q)


def _affine(x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    """gain x + offset, channel by channel of x (B, 3, H, W)."""
    return torch.addcmul(x.new_tensor(offset)[:, None, None], x, x.new_tensor(gain)[:, None, None])
