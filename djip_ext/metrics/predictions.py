"""The logits of a network over a data set, batch by batch: the loop that all measures share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from djip_ext.inputs.batches import Batches
from djip_ext.utils.networks import autocast, device_of, logits_of
from djip_ext.utils.precision import in_dtype_of

Transform = Callable[[Tensor], Tensor]


def predictions(
    network: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    transforms: Sequence[Transform | None],
    precision: str,
) -> Iterator[tuple[list[Tensor], Tensor, Tensor | None]]:
    """Yield the logits (B, C), float32, behind each of ``transforms``, the labels (B,), the index.

    Args:
        loader: batches that begin with normalised images (B, 3, H, W) and labels (B,).
        transforms: map the images to what the network sees; ``None``: the images as they are.
        precision: of the network, "float32" or "bfloat16".

    Raises:
        DJIPError: batches that cannot be right, an unknown precision.
    """
    device = device_of(network)  # None, without weights, leaves the images where they are
    batches = loader if isinstance(loader, Batches) else Batches(loader, num_classes)
    for image, label, index in batches:
        image = image.to(device=device)
        with autocast(image.device, precision):
            logits = [
                logits_of(
                    network(in_dtype_of(network, image if through is None else through(image)))
                ).float()
                for through in transforms
            ]
        yield logits, label.to(device=device), index
