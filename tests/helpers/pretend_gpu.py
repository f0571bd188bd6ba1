"""A GPU for machines that have none.

Its tensors claim to lie on another device, compute on the CPU, and refuse to mix with tensors of
the CPU:

    with pretend_gpu():
        lens.to(GPU)(images.to(GPU))

runs the real code with real numbers and raises where a real GPU would: two devices in one
operation.  CUDA lets the elementwise operations of two arguments take a number (a tensor without
dimensions) from the CPU, and an index; so does this, and nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("meta")
NUMBER_FROM_CPU = {
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "maximum",
    "minimum",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "add_",
    "sub_",
    "mul_",
    "div_",
    "where",
    "bitwise_and",
    "bitwise_or",
    "fill_",
}
INDEXED = {"index", "index_put_", "index_put"}
READ = (
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__bool__,
    Tensor.__index__,
    Tensor.item,
    Tensor.tolist,
    Tensor.__format__,
)
ACROSS = {"_to_copy", "copy_", "_pin_memory"}


class OnGPU(Tensor):
    """``inner``, a CPU tensor, as one of :data:`GPU`."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGPU":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )
        made.inner = inner
        return made

    def __repr__(self, **how: Any) -> str:
        return f"OnGPU({self.inner!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(
            protocol
        )  # saved as the CPU's: what loads it here knows no other device

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
    ours = [t for t in tensors if isinstance(t, OnGPU)]
    if ours and name not in ACROSS and not (name in INDEXED and isinstance(args[0], OnGPU)):
        on_cpu = [
            tuple(t.shape)
            for t in tensors
            if not isinstance(t, OnGPU) and not (t.dim() == 0 and name in NUMBER_FROM_CPU)
        ]
        if on_cpu:
            raise RuntimeError(
                f"{func}: expected all tensors to be on {GPU}, found {on_cpu} on the CPU"
            )
    device = kwargs.get("device")
    device = torch.device(device) if device is not None else None
    wanted = (
        device.type == "meta"
        if device is not None
        else bool(ours) and (name != "copy_" or isinstance(args[0], OnGPU))
    )
    if device is not None and device.type == "meta":
        kwargs = kwargs | {"device": torch.device("cpu")}
    outer = {id(t.inner): t for t in ours}
    result = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return outer.get(id(value)) if id(value) in outer else OnGPU(value) if wanted else value

    return tree_map(wrap, result)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnGPU) else value


def _item(x: Tensor, index: Any) -> Tensor:
    """x[index] by differentiable operations; torch's own looks for the device's driver first."""
    index = index if isinstance(index, tuple) else (index,)
    if any(i is Ellipsis for i in index):
        at = next(k for k, i in enumerate(index) if i is Ellipsis)
        rest = x.dim() - sum(i is not None and i is not Ellipsis for i in index)
        index = (*index[:at], *[slice(None)] * rest, *index[at + 1 :])
    dim, chosen = 0, {}
    for i in index:
        if i is None:
            x = x.unsqueeze(dim)
        elif isinstance(i, int):
            x, dim = x.select(dim, i), dim - 1
        elif isinstance(i, slice):
            x = torch.ops.aten.slice.Tensor(x, dim, i.start, i.stop, i.step or 1)
        else:
            chosen[dim] = i = i if isinstance(i, Tensor) else torch.tensor(i)
            dim += i.dim() - 1 if i.dtype == torch.bool else 0
        dim += 1
    if not chosen:
        return x
    return torch.ops.aten.index.Tensor(x, [chosen.get(d) for d in range(max(chosen) + 1)])


class _Factories(TorchDispatchMode):
    """Sends ``torch.zeros(..., device=GPU)`` and the like here, which no argument would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Scalars(TorchFunctionMode):
    """Catches ``torch.tensor(numbers, device=GPU)`` and ``x.new_tensor``.

    They make their result before any dispatch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (
            func in (torch.tensor, torch.as_tensor)
            and kwargs.get("device") is not None
            and torch.device(kwargs["device"]).type == "meta"
        ):
            if isinstance(args[0], OnGPU):
                return func(*args, **kwargs)
            kwargs.pop("device")
            return func(*args, **kwargs).to(GPU)
        if func is Tensor.__setitem__ and isinstance(args[0], OnGPU):
            target, index, value = args
            if isinstance(value, Tensor) and not isinstance(value, OnGPU) and value.dim() > 0:
                raise RuntimeError(
                    f"assigning a tensor {tuple(value.shape)} of the CPU to one on {GPU}"
                )
            return func(target.inner, tree_map(_inner, index), _inner(value))
        if func is Tensor.__getitem__ and isinstance(args[0], OnGPU):
            return _item(*args)
        if func in READ and isinstance(args[0], OnGPU):
            return func(args[0].inner)
        if func is Tensor.new_tensor and isinstance(args[0], OnGPU):
            kwargs.setdefault("dtype", args[0].dtype)
            return torch.tensor(*args[1:], **kwargs).to(GPU)
        return func(*args, **kwargs)


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Inside, :data:`GPU` exists."""
    real = torch.autocast
    torch.autocast = lambda kind, *args, **kwargs: (
        nullcontext() if kind == GPU.type else real(kind, *args, **kwargs)
    )  # it knows no such device
    try:
        with _Scalars(), _Factories():
            yield
    finally:
        torch.autocast = real
