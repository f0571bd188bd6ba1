"""The weight initialisation shared by the residual, VGG and mobile networks."""

from torch import nn


def he_fan_out_(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / (k^2 C_out)) and zero its bias, in place.

    He et al., *Delving Deep into Rectifiers*, ICCV 2015, equation 14 (the backward case).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_linear_(classifier: nn.Linear) -> None:
    """Draw a classifier's weight from N(0, 0.01^2) and zero its bias, in place."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
