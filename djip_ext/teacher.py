"""A frozen teacher behind a lens, which a distiller cannot tell from the teacher alone."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DJIPError
from .lens import JPEGLens
from .lens_file import check_belongs, control_digest, lens_digest, lens_name, softening
from .outputs import device_of, divide_logits
from .pixels import Normalisation

FINGERPRINT = "djip_fingerprint"
IMAGE_KEYWORDS = ("x", "image", "images", "input", "pixel_values")

# Entry points into a network that take images but are not its forward: through them the lens would silently be skipped.
BYPASSES = frozenset({"forward_features", "forward_intermediates", "get_intermediate_layers", "extract_features", "features", "backbone"})


class DJIPTeacher(nn.Module):
    """``teacher`` seeing its images through ``lens``; frozen, in eval mode, delegating everything else to the teacher.

    Args:
        teacher: any network whose first argument is a batch of normalised images; its output passes through unchanged.
        lens: a :class:`JPEGLens` (copied and frozen), or ``"identity"``: then the teacher's output is bit for bit its own; or
            ``"temperature:K"``, a control without a lens: its logits divided by K, everything else its own.
        mean, std: the normalisation of the images, in units of [0, 1] pixels.
        any_teacher: accept a lens that was fitted for other weights.

    The state dict has the teacher's own keys plus ``djip_fingerprint``, so that a checkpoint written with one lens does not
    resume with another, nor without.  ``train()`` leaves the teacher in eval mode.

    Shape: normalised images (B, 3, H, W) -> what the teacher returns.

    Raises:
        DJIPError: the lens belongs to other weights or another normalisation; no image among the arguments; an entry
            point is called that would bypass the lens.
    """

    def __init__(
        self,
        teacher: nn.Module,
        lens: JPEGLens | str,
        mean: Sequence[float],
        std: Sequence[float],
        any_teacher: bool = False,
    ) -> None:
        super().__init__()
        normalisation = Normalisation(mean, std)
        if isinstance(teacher, DJIPTeacher):
            raise DJIPError("this teacher has a lens already; wrap the plain teacher instead")
        if isinstance(lens, str) and softening(lens) is not None:
            digest = control_digest(lens)
        elif isinstance(lens, JPEGLens):
            if not any_teacher:
                check_belongs(lens, teacher, mean, std)
            digest = lens_digest(lens)
            lens = copy.deepcopy(lens).freeze().requires_grad_(False)
            if (device := device_of(teacher)) is not None:
                lens.to(device)
        else:
            raise DJIPError(f"lens is {lens!r}; DJIPTeacher takes a JPEGLens (load_lens(path)), 'identity' or 'temperature:K'")
        self.djip_control = lens if isinstance(lens, str) else None
        self.djip_teacher = teacher.requires_grad_(False).eval()
        self.djip_lens = lens if isinstance(lens, JPEGLens) else None
        self.djip_normalisation = normalisation
        self.register_buffer(FINGERPRINT, torch.frombuffer(bytearray(digest), dtype=torch.uint8), persistent=False)
        self.eval()

    @property
    def djip_id(self) -> str:
        """``"identity"``, ``"temperature-K"`` or the lens's eight hex digits."""
        return lens_name(self.djip_control if self.djip_lens is None else self.djip_lens)

    def look(self, x: Tensor) -> Tensor:
        """What the teacher sees: the normalised images (B, 3, H, W) through the lens, normalised again, same dtype."""
        return x if self.djip_lens is None else self.djip_normalisation.through(self.djip_lens, x)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.djip_lens is None:
            output, by = self.djip_teacher(*args, **kwargs), softening(self.djip_control)
            return output if self.djip_control == "identity" else divide_logits(output, by)
        if args:
            return self.djip_teacher(self.look(args[0]), *args[1:], **kwargs)
        for name in IMAGE_KEYWORDS:
            if name in kwargs:
                return self.djip_teacher(**{**kwargs, name: self.look(kwargs[name])})
        raise DJIPError(f"no image among the teacher's arguments {sorted(kwargs)}; pass it first, or as one of {', '.join(IMAGE_KEYWORDS)}")

    def train(self, mode: bool = True) -> "DJIPTeacher":
        """Stay in eval mode: a frozen teacher's statistics must not move."""
        return super().train(False)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Dunders and an object still being unpickled or copied have nothing to delegate to.
            if name.startswith("__") or "djip_teacher" not in self.__dict__.get("_modules", {}):
                raise
        attribute = getattr(self.djip_teacher, name)
        if name in BYPASSES and callable(attribute) and self.djip_lens is not None:
            return _Bypass(name, attribute)
        return attribute

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        if args:  # torch's old positional order
            destination, prefix, keep_vars = (*args, *(destination, prefix, keep_vars)[len(args):])
        state = self.djip_teacher.state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        state[prefix + FINGERPRINT] = self.djip_fingerprint
        return state

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: Any, unexpected_keys: Any, error_msgs: Any
    ) -> None:
        """Check the fingerprint, then hand the teacher its keys under the name that torch looks for next."""
        found = state_dict.pop(prefix + FINGERPRINT, None)
        if found is None:
            error_msgs.append("the checkpoint was written without a lens, this teacher has one; resume without --djip-lens or start afresh")
        elif not torch.equal(found.cpu(), self.djip_fingerprint.cpu()):
            error_msgs.append(f"the checkpoint was written with another lens than {self.djip_id}; resume with that one or start afresh")
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}djip_teacher.{key[len(prefix):]}"] = state_dict.pop(key)

    def extra_repr(self) -> str:
        return f"lens={self.djip_id}"


class _Bypass:
    """Stands in for an entry point that would skip the lens: readable as ever, but calling it is an error."""

    def __init__(self, name: str, target: Any) -> None:
        self._name, self._target = name, target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._target, name)

    def __getitem__(self, index: Any) -> Any:
        return self._target[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise DJIPError(f"the teacher's {self._name}() would bypass the lens; call the teacher itself, or {self._name} on teacher.look(images)")
