"""ResNet-18 for small images (He et al., "Deep Residual Learning", 2016, arXiv:1512.03385)."""

from itertools import pairwise

from torch import Tensor, nn

__all__ = ["ResNet18"]


class ResNet18(nn.Module):
    """ResNet-18 with the 3×3 stem and no pooling that 32×32 images need.

    Args:
        channels: input channels.
        outputs: number of classes.
        width: channels of the first stage; 64 in the paper.
    """

    def __init__(self, channels: int = 3, outputs: int = 10, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        sizes = [width, width, 2 * width, 4 * width, 8 * width]
        blocks = []
        for stage, (before, after) in enumerate(pairwise(sizes)):
            blocks += [_Block(before, after, 1 if stage == 0 else 2), _Block(after, after, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(B, channels, H, W)` to logits `(B, outputs)`."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and before == after
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))
