"""Layers with parameters: the two attention modules, the votes, the decoder, the trunks."""

from dualcaps.nn.attention import CapsAttention as CapsAttention
from dualcaps.nn.attention import ConvAttention as ConvAttention
from dualcaps.nn.decoder import Decoder as Decoder
from dualcaps.nn.layers import Conv2d as Conv2d
from dualcaps.nn.layers import LayerStack as LayerStack
from dualcaps.nn.layers import MaxPool2d as MaxPool2d
from dualcaps.nn.layers import crop_images as crop_images
from dualcaps.nn.layers import glorot_conv as glorot_conv
from dualcaps.nn.layers import glorot_linear as glorot_linear
from dualcaps.nn.layers import has_hooks as has_hooks
from dualcaps.nn.layers import standardise_images as standardise_images
from dualcaps.nn.layers import to_unit_range as to_unit_range
from dualcaps.nn.layers import training_mode as training_mode
from dualcaps.nn.votes import GridVotes as GridVotes
from dualcaps.nn.votes import PositionVotes as PositionVotes
from dualcaps.nn.votes import PrimaryVotes as PrimaryVotes
