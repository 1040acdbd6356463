"""SHNet: network.py is the figure of the paper, fusion.py and aggregation.py are two of its boxes."""

from refseg.models.shnet.config import SHNetConfig
from refseg.models.shnet.network import SHNet

__all__ = ["SHNet", "SHNetConfig"]
