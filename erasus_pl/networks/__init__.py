"""Small reference networks; users bring their own."""

from erasus_pl.networks.convnet import ConvNet
from erasus_pl.networks.mlp import MLP
from erasus_pl.networks.resnet import ResNet18
from erasus_pl.networks.sharded import ShardedEnsemble
from erasus_pl.networks.tiny_llama import TinyLlama

__all__ = ["MLP", "ConvNet", "ResNet18", "ShardedEnsemble", "TinyLlama"]
