"""The reference networks. A leaf: torch only, no other room."""

from mizzle.models.inception_v1 import InceptionOutput, InceptionV1, inception_loss
from mizzle.models.lenet5 import LeNet5
from mizzle.models.mlp_7m import Mlp7M
from mizzle.models.vgg16 import VGG16

__all__ = ["VGG16", "InceptionOutput", "InceptionV1", "LeNet5", "Mlp7M", "inception_loss"]
