"""A small convolutional network."""

from torch import Tensor, nn

__all__ = ["ConvNet"]


class ConvNet(nn.Module):
    """Two 3×3 convolutions with pooling, then a linear head.

    Args:
        channels: input channels.
        outputs: number of classes.
        width: channels of the first convolution; the second has twice as many.
    """

    def __init__(self, channels: int = 1, outputs: int = 10, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(B, channels, H, W)` to logits `(B, outputs)`."""
        return self.head(self.body(x).mean((2, 3)))
