"""A frozen teacher behind a lens, which a distiller cannot tell from the teacher alone."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.inputs.batches import check_range
from djip_ext.inputs.first_batch import (
    answer_without_lens,
    check_image,
    check_not_traced,
    say_if_unchanged,
)
from djip_ext.inputs.pieces import Watch, is_prepared, prepared, watch
from djip_ext.lens.io import check_belongs, control_digest, lens_digest, lens_name, softening
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.ops.exportable import is_tracing
from djip_ext.utils.distributed import say
from djip_ext.utils.networks import device_of, divide_logits
from djip_ext.utils.precision import in_dtype_of

FINGERPRINT = "djip_fingerprint"
LAST_LOOK = 8  # batches after which the images are not looked at any more
LARGEST_NOISE = 8.0  # standard normal numbers stay below it, 8-bit pixels do not
IMAGE_KEYWORDS = ("x", "image", "images", "input", "pixel_values")

# Methods of other libraries that write the inner teacher alone.
SAVES = frozenset({"save_pretrained", "push_to_hub"})

# Methods of other libraries' networks that take images but are not their forward: the lens is
# applied to what is passed to them.
IMAGE_METHODS = frozenset(
    {
        "forward_features",
        "forward_intermediates",
        "get_intermediate_layers",
        "extract_features",
        "get_image_features",
        "encode_image",
    }
)
# Parts that images may enter; through them the lens would silently be skipped.
BYPASSES = IMAGE_METHODS | {"features", "backbone"}


@dataclass
class _Looks:
    """What was looked at so far.

    Attributes:
        batches: how many batches came.
        compared: whether one was compared with the teacher's answer without the lens.
    """

    batches: int = 0
    compared: bool = False


class DJIPTeacher(nn.Module):
    """``teacher`` with ``lens`` applied to its images; frozen, in eval mode.

    Everything else is delegated to the teacher.

    Args:
        teacher: any network whose first argument is a batch of normalised images; its output passes
            through unchanged.
        lens: a :class:`JPEGLens` (copied and frozen), or ``"identity"``: then the teacher's output
            is bit for bit its own; or ``"temperature:K"``, a control without a lens: its logits
            divided by K, everything else its own.
        mean, std: the normalisation of the images, in units of [0, 1] pixels.
        any_teacher: accept a lens that was fitted for other weights.

    The state dict has the teacher's own keys plus ``djip_fingerprint``, so that a checkpoint
    written with one lens does not resume with another, nor without.  ``train()`` leaves the teacher
    in eval mode.

    Shape: normalised images (B, 3, H, W) -> what the teacher returns.

    Raises:
        DJIPError: the lens belongs to other weights or another normalisation; no image among the
            arguments; an entry point is called that would bypass the lens.
    """

    djip_fingerprint: Tensor
    _watch: Watch | None = None
    # shared by DataParallel's replicas; none in objects that were pickled before there was one
    _looks: "_Looks | None" = None

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
        if any(isinstance(module, DJIPTeacher) for module in teacher.modules()):
            raise DJIPError("this teacher has a lens already; wrap the plain teacher instead")
        divisor = softening(lens) if isinstance(lens, str) else None
        if isinstance(lens, str) and divisor is not None:
            digest = control_digest(lens)
        elif isinstance(lens, JPEGLens):
            if not any_teacher:
                check_belongs(lens, teacher, mean, std)
            digest = lens_digest(lens)
            lens = copy.deepcopy(lens).freeze().requires_grad_(False)
            if (device := device_of(teacher)) is not None:
                lens.to(device)
        else:
            raise DJIPError(
                f"lens is {lens!r}; DJIPTeacher takes a JPEGLens (load_lens(path)), 'identity' or "
                "'temperature:K'"
            )
        self.djip_control = lens if isinstance(lens, str) else None
        self.djip_divisor = divisor
        self.djip_teacher = _without_training(teacher)
        self.djip_lens = lens if isinstance(lens, JPEGLens) else None
        self.djip_normalisation = normalisation
        self.register_buffer(
            FINGERPRINT, torch.frombuffer(bytearray(digest), dtype=torch.uint8), persistent=False
        )
        self._looks = _Looks()
        self._watch = watch(teacher) if self.djip_lens is not None else None
        self.eval()

    @property
    def djip_id(self) -> str:
        """``"identity"``, ``"temperature-K"`` or the lens's eight hex digits."""
        if self.djip_lens is not None:
            return lens_name(self.djip_lens)
        assert self.djip_control is not None  # one of the two is given
        return lens_name(self.djip_control)

    def apply_lens(self, x: Tensor) -> Tensor:
        """What the teacher sees of normalised images (B, 3, H, W): normalised again, same dtype.

        Parts of the teacher may be run on what this returns, as may the teacher itself, which does
        not apply the lens again.  That holds for this tensor, not for slices and copies of it.

        Raises:
            DJIPError: ``x`` is no batch of floating-point images.
        """
        if self.djip_lens is None:
            return x
        check_image(x)
        return prepared(self.djip_normalisation.through(self.djip_lens, x))

    def look(self, x: Tensor) -> Tensor:
        """Deprecated name of :meth:`apply_lens`."""
        return self.apply_lens(x)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        check_not_traced(args)
        if _is_recorded():
            return self._answer(args, kwargs)
        try:
            plain = self._check_first_images(args, kwargs)
            output = self._answer(args, kwargs)
        except (KeyboardInterrupt, SystemExit):
            if self._watch is not None:  # the hook that closes it does not run for these
                self._watch.running.clear()
            raise
        if plain is not None:
            say_if_unchanged(plain, output)
        return output

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen_args, seen_kwargs = self._behind_lens(args, kwargs)
        output = self.djip_teacher(*seen_args, **seen_kwargs)
        if self.djip_divisor is None or self.djip_control == "identity":
            return output
        return divide_logits(output, self.djip_divisor)

    def _behind_lens(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the teacher, the image among them as the teacher sees it."""
        if args:
            return (self._seen(args[0]), *args[1:]), kwargs
        for name in IMAGE_KEYWORDS:
            if name in kwargs:
                return args, {**kwargs, name: self._seen(kwargs[name])}
        if self.djip_lens is None:
            return args, kwargs
        raise DJIPError(
            f"no image among the teacher's arguments {sorted(kwargs)}; pass it first, or as one of "
            f"{', '.join(IMAGE_KEYWORDS)}"
        )

    def _seen(self, image: Any) -> Any:
        if self.djip_lens is not None and not is_prepared(image):
            check_image(image)
            image = self.djip_normalisation.through(self.djip_lens, image)
        return in_dtype_of(self.djip_teacher, image) if isinstance(image, Tensor) else image

    def _call_behind_lens(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the teacher that takes images."""
        if not any(map(is_prepared, (*args, *kwargs.values()))):  # by apply_lens
            args, kwargs = self._behind_lens(args, kwargs)
        if torch.compiler.is_compiling() or self._watch is None:
            return method(*args, **kwargs)
        with self._watch.inside():
            return method(*args, **kwargs)

    def _check_first_images(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Check the range of the first images; the teacher's logits for a few without the lens.

        The 1st, 2nd, 4th and 8th batch are looked at: the first may be zeros or noise, by which a
        distiller learns the shape of the features, and these say nothing of the images to come.
        """
        looks = self._looks
        if self.djip_lens is None or looks is None or looks.batches >= LAST_LOOK:
            return None
        name = None
        if args:
            image = args[0]
        else:
            name = next((name for name in IMAGE_KEYWORDS if name in kwargs), "")
            image = kwargs.get(name)
        if image is None or is_prepared(image):
            return None
        check_image(image)
        looks.batches += 1
        if looks.batches & (looks.batches - 1) or _is_flat(image):
            return None
        if looks.batches > 1 or float(image.detach().abs().max()) > LARGEST_NOISE:
            check_range(image, self.djip_normalisation.mean, self.djip_normalisation.std)
        if looks.compared or getattr(self, "_is_replica", False):
            return None
        looks.compared = True
        return answer_without_lens(self.djip_teacher, image, args[1:], kwargs, name)

    def train(self, mode: bool = True) -> "DJIPTeacher":
        """Stay in eval mode: a frozen teacher's statistics must not move."""
        return super().train(False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.djip_lens is not None:  # the hooks of a copy or an unpickled teacher are its own
            self._watch = watch(self.djip_teacher)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Dunders and an object still being unpickled or copied have nothing to delegate to.
            if name.startswith("__") or "djip_teacher" not in self.__dict__.get("_modules", {}):
                raise
        attribute = getattr(self.djip_teacher, name)
        if self.djip_lens is None or not callable(attribute):
            return attribute
        if name in IMAGE_METHODS and not isinstance(attribute, nn.Module):
            return functools.partial(self._call_behind_lens, attribute)
        if name in BYPASSES:
            return _Bypass(name, attribute)
        if name in SAVES:
            return functools.partial(self._save_without_lens, name, attribute)
        return attribute

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a part that the teacher has, a new head say, in the teacher, frozen as that is."""
        teacher = self.__dict__.get("_modules", {}).get("djip_teacher")
        if teacher is None or not isinstance(value, nn.Module) or name not in teacher._modules:
            super().__setattr__(name, value)
            return
        setattr(teacher, name, _without_training(value))
        if self._watch is not None:
            self._watch = watch(teacher)

    def _save_without_lens(self, name: str, save: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Save the plain teacher, as its own method does, and say that the lens is not in it."""
        say(f"note: {name}() saves the teacher without its lens; keep that by djip_lens.save(path)")
        return save(*args, **kw)

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        if args:  # torch's old positional order
            named = {"destination": destination, "prefix": prefix, "keep_vars": keep_vars}
            return self.state_dict(**(named | dict(zip(named, args, strict=False))))
        state = self.djip_teacher.state_dict(
            destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        state[prefix + FINGERPRINT] = self.djip_fingerprint
        # Some layers, quantised ones for example, read the version that they were written with, and
        # look for it at the place that they have here.
        versions = getattr(state, "_metadata", {})  # of a plain dictionary: none
        for key in [key for key in versions if f"{key}.".startswith(prefix)]:
            versions[f"{prefix}djip_teacher.{key[len(prefix) :]}".rstrip(".")] = versions[key]
        return state

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        """Check the fingerprint, then rename the teacher's keys as torch expects them next."""
        found = state_dict.pop(prefix + FINGERPRINT, None)
        if found is None:
            error_msgs.append(
                "the checkpoint was written without a lens, this teacher has one; resume without "
                "--djip-lens or start afresh"
            )
        elif not torch.equal(found.cpu(), self.djip_fingerprint.cpu()):
            error_msgs.append(
                f"the checkpoint was written with another lens than {self.djip_id}; resume with "
                "that one or start afresh"
            )
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}djip_teacher.{key[len(prefix) :]}"] = state_dict.pop(key)

    def extra_repr(self) -> str:
        return f"lens={self.djip_id}"


def _is_recorded() -> bool:
    """Whether a compiler, a tracer or a CUDA graph records the call, which can read no numbers."""
    if torch.compiler.is_compiling() or is_tracing():
        return True
    on_a_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return on_a_gpu and bool(torch.cuda.is_current_stream_capturing())


def _is_flat(image: Tensor) -> bool:
    """Whether all numbers are one, as in a batch of zeros, or there are none."""
    return image.numel() == 0 or bool(image.detach().amin() == image.detach().amax())


def _without_training(teacher: nn.Module) -> nn.Module:
    """``teacher``, frozen and in eval mode.

    Raises:
        DJIPError: it has no eval mode.
    """
    for parameter in teacher.parameters():  # TorchScript has no requires_grad_() for a module
        parameter.requires_grad_(False)
    try:
        return teacher.eval()
    except NotImplementedError as error:
        raise DJIPError(
            f"the teacher, a {type(teacher).__name__}, has no eval mode; export it in eval mode "
            "and wrap it: ClosedTeacher(teacher, num_classes, name='...')"
        ) from error


class _Bypass:
    """The place of an entry point that would bypass the lens: readable, but not callable."""

    def __init__(self, name: str, target: Any) -> None:
        self._name = name
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._target, name)

    def __getitem__(self, index: Any) -> Any:
        return self._target[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._target)

    def __len__(self) -> int:
        return len(self._target)

    def __bool__(self) -> bool:
        return bool(self._target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise DJIPError(
            f"the teacher's {self._name}() would bypass the lens; call the teacher itself, or "
            f"{self._name} on teacher.apply_lens(images)"
        )
