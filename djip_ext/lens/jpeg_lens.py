"""The lens: a differentiable JPEG codec in front of a network.

It has two quantization tables, 128 numbers in all.
"""

import os
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.lens.file_format import SETTINGS, STEPS, write_lens_file
from djip_ext.lens.jpeg_file import jpeg_tables, read_jpeg_tables
from djip_ext.ops import exportable
from djip_ext.ops.dct import BLOCK, coefficients_to_rgb, pad_to_blocks, rgb_to_coefficients
from djip_ext.ops.fused import FusedLens, KernelConstants
from djip_ext.ops.quantizer import hard_quantize, soft_quantize

Q_MIN, Q_MAX = STEPS

SOFT_KAPPA = 5.0  # alpha q^2 of a soft lens read from a JPEG file: where fits start as well


class JPEGLens(nn.Module):
    """J_d(x, w): colour transform, 8x8 DCT, soft quantization and back (arXiv 2410.07081).

    Args:
        q: the tables w: a number (all steps equal) or a tensor (2, 8, 8), luma first, chroma second
            (shared by Cb and Cr), entry [v, u] for vertical frequency v and horizontal frequency u.
            Clamped into [1e-5, 255] here.  Whoever changes the steps keeps them there: a lens
            beyond that range is not saved.
        alpha: sharpness of the soft quantizer, the same for all steps.  JPEG-DL has 5 on CIFAR.
        max_index: L; coefficient (v, u) saturates at L q[v, u].
        window: ``None`` for the exact sum, 5 for the bins that JPEG-DL's code sums.
        kappa: when given, alpha is tied to the step, alpha = kappa / q^2 (JPEG-DL has 0.7 on
            ImageNet).
        hard: round instead (alpha -> infinity); the tables then receive no gradient.

    Shape: float (B, 3, H, W) in [0, 255], any H and W -> the same, not clamped to [0, 255], which
    would zero gradients; float32 whatever autocast says (float64 stays).

    The steps may be changed at any time; on a GPU under ``torch.no_grad()``, not through ``.data``,
    whose changes torch does not count.

    Raises:
        DJIPError: tables of another shape or not positive, a sharpness that is no positive number,
            an image batch that is not (B, 3, H, W) or is scaled to [0, 1].

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
    ) -> None:
        super().__init__()
        tables = torch.as_tensor(q, dtype=torch.float32).detach().clone()
        if tables.dim() == 0:
            tables = tables.expand(2, BLOCK, BLOCK).clone()
        if tables.shape != (2, BLOCK, BLOCK):
            raise DJIPError(
                f"the tables have shape {tuple(tables.shape)}; a lens takes a number or (2, 8, 8): "
                "luma, chroma"
            )
        if not bool(torch.isfinite(tables).all() and (tables > 0).all()):
            raise DJIPError(
                "the tables hold steps that are not positive numbers; every q must lie in (0, 255]"
            )
        for name, value in (("alpha", alpha), ("kappa", 1.0 if kappa is None else kappa)):
            if not isinstance(value, Real) or not value > 0:
                raise DJIPError(f"{name} is {value!r}; the sharpness must be a positive number")
        if max_index < 1 or (window is not None and (window < 1 or window % 2 == 0)):
            raise DJIPError(
                f"max_index is {max_index} and window {window}; L must be at least 1 and the "
                "window odd or None"
            )
        self.q: Tensor = nn.Parameter(tables.clamp(Q_MIN, Q_MAX))
        # of NumPy's numbers JSON knows float64 alone
        self.alpha = alpha if isinstance(alpha, (int, float)) else float(alpha)
        self.kappa = kappa if isinstance(kappa, (int, float, type(None))) else float(kappa)
        self.max_index = max_index
        self.window = window
        self.hard = hard
        self.metadata: dict[str, Any] = {}  # what it was fitted for; written and read with the file
        self._range_checked = False
        self._compiled = False
        self._kept: _Kept | None = None

    _graph_constants: "_GraphConstants | None" = None  # of a frozen lens, for tracers

    @classmethod
    def jpeg_dl(
        cls, q: float | Tensor = 1.0, dataset: Literal["cifar", "imagenet"] = "cifar"
    ) -> "JPEGLens":
        """The lens as JPEG-DL's published code computes it.

        It has five bins, L = 127, and alpha 5 (CIFAR) or tied with kappa 0.7 (ImageNet).
        """
        kappa = 0.7 if dataset == "imagenet" else None
        return cls(q, alpha=5.0, max_index=127, window=5, kappa=kappa)

    def settings(self) -> dict[str, Any]:
        """The arguments that make this lens, but for its steps."""
        return {name: getattr(self, name) for name in SETTINGS}

    @classmethod
    def from_jpeg(cls, path: str | os.PathLike[str], hard: bool = True) -> "JPEGLens":
        """The quantization tables of a JPEG file, a camera's or a service's, as a lens.

        Progressive files have the same tables and are read alike.  The lens works 4:4:4: for a file
        with subsampled chroma, or a grey one, a warning says what it cannot show.

        Args:
            hard: round as the file does (its decoder clamps to [0, 255] as well); otherwise soft
                with alpha = 5 / q^2, where a fit can start.

        Raises:
            DJIPError: no JPEG file, no YCbCr in it, or different tables for Cb and Cr.
        """
        tables, about = read_jpeg_tables(path)
        lens = cls(tables, kappa=None if hard else SOFT_KAPPA, hard=hard)
        lens.metadata = {"start": f"the tables of {Path(path).name}", "jpeg_file": about}
        return lens

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **where: Any) -> "JPEGLens":
        """Read a lens from a folder of :meth:`save_pretrained`, or from the Hugging Face Hub.

        Args:
            name: a folder, or the repository ``OWNER/NAME``.
            where: ``revision``, ``cache_dir``, ``token``, ``local_files_only`` and
                ``force_download``, as huggingface_hub takes them.

        Raises:
            DJIPError: no lens there, no network, huggingface_hub is not installed.
        """
        from djip_ext.lens.hub import from_pretrained

        return from_pretrained(name, **where)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        distiller: str = "",
        temperature: float | None = None,
    ) -> None:
        """Write lens, configuration and model card into ``folder``, as the Hugging Face Hub does.

        Args:
            distiller, temperature: what the lens is meant for, as the card then says.

        Raises:
            DJIPError: the folder cannot be written, huggingface_hub is not installed.
        """
        from djip_ext.lens.hub import save_pretrained

        save_pretrained(self, folder, distiller=distiller, temperature=temperature)

    def push_to_hub(
        self,
        repository: str,
        *,
        distiller: str = "",
        temperature: float | None = None,
        **how: Any,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes; return the address of the commit.

        Args:
            repository: ``OWNER/NAME``.
            distiller, temperature: what the lens is meant for.
            how: ``private``, ``token``, ``branch`` ... of huggingface_hub's ``push_to_hub``.

        Raises:
            DJIPError: huggingface_hub is not installed, or the Hub did not take it.
        """
        from djip_ext.lens.hub import push_to_hub

        return push_to_hub(self, repository, how, distiller=distiller, temperature=temperature)

    def jpeg_tables(self) -> list[list[int]]:
        """The tables as a JPEG file holds them: luma and chroma, 64 integers in 1 .. 255 each.

        In natural order (row by row, not zigzag), as the ``qtables`` of Pillow's ``Image.save``
        takes them.  Steps are rounded to the nearest integer, a half to the nearest even one, and a
        step below 1 becomes 1; so the file shows the *hard* lens of these integers, without
        saturation.
        """
        return jpeg_tables(self.q)

    def sharpness(self) -> Tensor | float:
        """alpha of every step: the fixed number, or (2, 8, 8) when it is tied to q."""
        return self.alpha if self.kappa is None else self.kappa / self.q.square()

    def forward(
        self,
        image: Tensor,
        gain: Sequence[float] | None = None,
        offset: Sequence[float] | None = None,
    ) -> Tensor:
        """Show ``image`` (B, 3, H, W) as a JPEG codec with these tables would.

        Args:
            image: pixels in [0, 255]; with ``gain`` and ``offset`` normalised images.
            gain, offset: three numbers each: ``gain x + offset``, by channel, are the pixels of x.
                The result is then normalised in the same way, all in one kernel.

        Raises:
            DJIPError: an image batch of another shape or scale; one of ``gain`` and ``offset``
                without the other.
        """
        if (gain is None) != (offset is None):
            raise DJIPError("a lens takes gain and offset together, or neither for pixels")
        check_image(image)
        if gain is None or offset is None:
            self._check_range(image)
            gain = (1.0, 1.0, 1.0)
            offset = (0.0, 0.0, 0.0)
        if exportable.is_tracing():
            return self._traced(image, gain, offset)
        seen: Tensor = self._codec(image, gain, offset)
        return seen

    def _traced(self, x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
        """As :meth:`_codec`, in operations that a tracer can record; tables become constants."""
        x = x if x.dtype == torch.float64 else x.float()
        pixels = affine(pad_to_blocks(x), gain, offset)
        if self.hard:
            seen = exportable.through_hard(pixels, self.q, self.max_index)
        else:
            seen = exportable.through(pixels, self._known_graph_constants())
        seen = seen[:, :, : x.shape[2], : x.shape[3]]
        return undo_affine(seen, gain, offset)

    def _known_graph_constants(self) -> exportable.Constants:
        if self._graph_constants is None:
            raise DJIPError(
                "an exported lens holds its tables as constants; call lens.freeze() first"
            )
        constants, settings, q, version = self._graph_constants
        changed = not torch.compiler.is_dynamo_compiling() and _changes(q) > version
        if changed or settings != self.settings():
            what = "tables" if changed else "settings"
            raise DJIPError(
                f"the {what} were changed after lens.freeze(); call it again, then export"
            )
        return constants

    def _keep_graph_constants(self) -> None:
        q = self._buffers.get("q")
        if q is None or self.hard or q.is_meta:
            self._graph_constants = None
        else:
            made = exportable.Constants.of(q, self.alpha, self.kappa, self.max_index, self.window)
            self._graph_constants = _GraphConstants(made, self.settings(), q, _changes(q))

    # A network compiled around the lens goes on behind it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _codec(self, x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            height, width = x.shape[2:]
            padded = pad_to_blocks(x)
            if self.hard:
                z = rgb_to_coefficients(affine(padded, gain, offset))
                z = hard_quantize(z, tile(self.q, z), self.max_index)
                seen = undo_affine(coefficients_to_rgb(z), gain, offset)
            else:
                constants = self._kernel_constants(gain, offset, padded)
                seen = FusedLens.apply(padded, self.q, constants, self._compiled)
            if padded is x:
                return seen
            # A network may view its images as it views those of a loader.
            return seen[:, :, :height, :width].contiguous()

    def compile(self) -> "JPEGLens":  # type: ignore[override]
        """Let torch.compile fuse what happens to a coefficient; returns the lens itself.

        Worth its 10 to 40 seconds, once per process, for a long training run.  Takes the place of
        ``nn.Module.compile``, for which the matrix products around it would be in the way.
        """
        self._compiled = True
        return self

    def _kernel_constants(
        self, gain: Sequence[float], offset: Sequence[float], x: Tensor
    ) -> KernelConstants:
        """Made anew only when the steps or the images' format have changed."""
        q = self.q.detach()
        codec = (self.alpha, self.kappa, self.max_index, self.window, tuple(gain), tuple(offset))
        key = (*codec, x.shape[3], x.dtype, q.device)
        kept = self._kept
        if kept is None or kept.key != key or not _unchanged(kept.mark, q):
            constants = KernelConstants.of(q, *codec, x.shape[3], x.dtype)
            kept = _Kept(key, _mark(q), constants)
            self._kept = kept
        return kept.constants

    def _check_range(self, image: Tensor) -> None:
        if exportable.is_tracing() or self._range_checked or image.numel() == 0:
            return
        low = image.detach().amin().item()
        high = image.detach().amax().item()
        if high <= 1.0 and low >= -1.0:
            if high > low:
                raise DJIPError(
                    f"the images lie in [{low:.2f}, {high:.2f}]; a lens takes [0, 255]: "
                    "multiply by 255"
                )
            return  # one flat black image tells nothing: check again next time
        self._range_checked = True  # once, since it synchronises with the device

    @torch.no_grad()
    def dead(self) -> Tensor:
        """Which steps have kappa = alpha q^2 < 1: bool (2, 8, 8), all False for a hard lens.

        The exact quantizer is then the identity to 3e-4 q, and the step has no gradient but through
        saturation.
        """
        if self.hard:
            return torch.zeros_like(self.q, dtype=torch.bool)
        if self.kappa is None:
            return self.alpha * self.q.square() < 1
        # Not kappa / q^2 * q^2, which rounding may take below 1.
        return torch.full_like(self.q, self.kappa < 1, dtype=torch.bool)

    @torch.no_grad()
    def health(self, image: Tensor) -> dict[str, float]:
        """What the tables do to ``image`` (B, 3, H, W) in [0, 255].

        Returns:
            ``dead``: how many of the 128 steps are :meth:`dead`.
            ``saturated``: fraction of the coefficients beyond the range, |z| > L q.
            ``zeroed``: fraction of the coefficients with 0.5 < |z| that come out as |Q(z)| < 0.5.
        """
        z = rgb_to_coefficients(pad_to_blocks(image.float()))
        q = tile(self.q, z)
        alpha = tile(torch.as_tensor(self.sharpness()).expand_as(self.q), z)
        if self.hard:
            out = hard_quantize(z, q, self.max_index)
        else:
            out = soft_quantize(z, q, alpha, self.max_index, self.window)
        visible = z.abs() > 0.5
        return {
            "dead": int(self.dead().sum()),
            "saturated": (z.abs() > self.max_index * q).float().mean().item(),
            "zeroed": ((out.abs() < 0.5) & visible).sum().item() / max(1, visible.sum().item()),
        }

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "JPEGLens":
        """Follow ``.to(device)`` and ``.double()``, but never ``.half()`` or ``.bfloat16()``.

        Rounded tables would be another lens.
        """
        before = self.q.detach()
        super()._apply(fn, *args, **kwargs)  # type: ignore[no-untyped-call]
        if self.q.dtype in (torch.float16, torch.bfloat16):
            self.q.data = before.to(self.q.device)
        self._keep_graph_constants()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A copy counts its changes anew, so that both are made anew, too.
        self._kept = None
        self._keep_graph_constants()

    def freeze(self) -> "JPEGLens":
        """Turn the tables from a parameter into a buffer that is not saved with the network.

        Returns the lens itself.
        """
        tables = self._parameters.pop("q", None)
        if tables is not None:
            self.register_buffer("q", tables.detach(), persistent=False)
        self._keep_graph_constants()
        return self

    def unfreeze(self) -> "JPEGLens":
        """Make the tables a parameter that takes gradients again, whatever froze them.

        Returns the lens itself.
        """
        if "q" in self._buffers:
            tables = self.q
            del self.q
            self.q = nn.Parameter(tables)
        self._graph_constants = None
        return self.requires_grad_(True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write tables, settings and ``metadata`` to one file; :func:`djip_ext.load_lens` reads it.

        Raises:
            DJIPError: the place cannot be written, a step lies beyond [1e-5, 255], or ``metadata``
                hold what JSON cannot.
        """
        write_lens_file(path, self.q, self.settings(), self.metadata)

    def extra_repr(self) -> str:
        sharp = f"alpha={self.alpha}" if self.kappa is None else f"kappa={self.kappa}"
        kind = "hard" if self.hard else f"{sharp}, window={self.window}"
        steps = "on meta"
        if not self.q.is_meta:
            low = self.q.detach().amin().item()
            high = self.q.detach().amax().item()
            steps = f"in [{low:.3g}, {high:.3g}]"
        return f"q {steps}, {kind}, max_index={self.max_index}"


class _GraphConstants(NamedTuple):
    """Of a graph, and the settings, the tensor and its count of changes that they are of."""

    constants: exportable.Constants
    settings: dict[str, Any]
    q: Tensor
    version: int


class _Kept(NamedTuple):
    """The last kernel constants, and of what they are."""

    key: tuple[Any, ...]
    mark: Any
    constants: KernelConstants


def _mark(q: Tensor) -> Any:
    """What tells later whether q, which must be detached, is still the same.

    On a CPU its values; elsewhere, where reading them would synchronise with the device, its place
    and torch's count of changes.  The tensor itself is held, lest its place be given to another.
    """
    if q.device.type == "cpu":
        return q.clone()
    return None if q.is_inference() else (q, q._version)


def _changes(q: Tensor) -> int:
    """How often torch saw q change; 0 where it does not count."""
    return 0 if q.is_inference() else q._version


def _unchanged(mark: Any, q: Tensor) -> bool:
    """Whether q is what it was when :func:`_mark` made ``mark``."""
    if q.device.type == "cpu":
        return torch.equal(mark, q)
    if mark is None or q.is_inference():
        return False
    held, version = mark
    same_place = held.data_ptr() == q.data_ptr() and held.stride() == q.stride()
    return bool(same_place and version == q._version)


def check_image(image: Tensor) -> None:
    """Raise DJIPError unless ``image`` is a tensor of floats (B, 3, H, W); a tracer's is not read.

    Of pixels and of normalised images alike.
    """
    if exportable.is_tracing():
        return
    if image.dim() != 4 or image.shape[1] != 3 or not image.is_floating_point():
        raise DJIPError(
            f"a lens takes float images (B, 3, H, W), got {image.dtype} {tuple(image.shape)}"
        )


def tile(table: Tensor, z: Tensor) -> Tensor:
    """Lay a table (2, 8, 8) out over the coefficients z (B, 3, H, W): (3, H, W).

    The second table is that of Cb and Cr.
    """
    rows, columns = z.shape[2] // BLOCK, z.shape[3] // BLOCK
    return table.to(z)[[0, 1, 1]].repeat(1, rows, columns)


def affine(x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    """gain x + offset, channel by channel of x (B, 3, H, W)."""
    return torch.addcmul(x.new_tensor(offset)[:, None, None], x, x.new_tensor(gain)[:, None, None])


def undo_affine(x: Tensor, gain: Sequence[float], offset: Sequence[float]) -> Tensor:
    """The inverse of :func:`affine`: (x - offset) / gain, as one affine map."""
    inverse_gain = [1 / g for g in gain]
    inverse_offset = [-o / g for g, o in zip(gain, offset, strict=True)]
    return affine(x, inverse_gain, inverse_offset)
