"""Multi-layer perceptron."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """Fully connected network with ReLU between its layers.

    Args:
        inputs: size of an input after flattening.
        hidden: sizes of the hidden layers; empty for a linear model.
        outputs: number of classes.
        dropout: probability of dropping a hidden unit while training.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int] = (64,), outputs: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for size in hidden:
            layers += [nn.Linear(inputs, size), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            inputs = size
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, …)` inputs to logits `(B, outputs)`."""
        return self.layers(x)
