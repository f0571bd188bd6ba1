"""What every classifier of the benchmark returns beside its logits."""

from typing import TypedDict

from torch import Tensor


class Features(TypedDict):
    """Intermediate maps of one forward pass.

    ``feats[i]`` and ``preact_feats[i]`` have one shape; the stem's map is listed as it is in both.

    Shape:
        feats: the stem's map, then the output of each stage, ``(B, C_i, H_i, W_i)``.
        preact_feats: for each stage the map that its closing (or, in a pre-activation network, the
            next) ReLU reads.
        pooled_feat: ``(B, C)``, the input of the linear classifier.
    """

    feats: list[Tensor]
    preact_feats: list[Tensor]
    pooled_feat: Tensor
