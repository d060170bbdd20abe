"""Machine unlearning on PyTorch Lightning. Importing the package itself loads nothing."""

__version__ = "0.1.0"
