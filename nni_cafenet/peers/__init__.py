"""Other pruners' choices of channels, read as sub-networks: to be scored by a supernet, sliced and retrained alike."""

from nni_cafenet.peers.masks import from_masks as from_masks
from nni_cafenet.peers.pruned import from_torch_pruning as from_torch_pruning
from nni_cafenet.peers.pruned import widths_of as widths_of
