"""What stays at full width, why, and what can be done about it?"""

from __future__ import annotations

import re
from dataclasses import dataclass

UNKNOWN = "no way to search it is known"

# a pattern of the reasons that tracing/ gives, and the remedy for what it matches; the first that matches counts
HINTS: tuple[tuple[str, str], ...] = (
    (r"named in ignore=", "take it out of ignore= to search it"),
    (r"no multiple of round_to=", "a smaller round_to, one that divides the number of channels"),
    (r"is the model's output", "nothing to do: the task sets the number of outputs"),
    (r"weight is tied", "give each of these layers a weight of its own"),
    (
        r"parametrisation or a hook",
        "remove it before the search, as by torch.nn.utils.parametrize.remove_parametrizations",
    ),
    (
        r"MultiheadAttention",
        "nothing to do: an attention keeps its width, and so does all that is added to what it reads or gives; the "
        "hidden layers of the MLPs between attentions can be searched",
    ),
    (r"LSTM or GRU|is an Embedding", "nothing to do: layers of this kind keep their width"),
    (
        r"fails at few channels|all layers are narrow|not finite at few channels",
        "a size that the forward computes from its channels comes to nothing: keep it at least 1",
    ),
    (
        r"forward fails when it is sliced",
        "compute sizes from x.shape in the forward, or leave them to -1, instead of fixed numbers and attributes",
    ),
    (r"in another order, sliced", "let the forward treat all channels alike, whatever their places and their number"),
    (r"changes the shape of the output", "nothing to do: the shape of the output depends on it"),
    (
        r"reordering its channels|the sliced network differs",
        "let the forward treat all channels alike, whatever their places and their number",
    ),
    (
        r"all of its channels hang together",
        "nothing to do: shuffles, views or cuts into equal parts tie each channel to all others",
    ),
    (
        r"does not run in the forward",
        "example inputs with which it runs; nothing to do for what is inside of an attention",
    ),
    (
        r"nothing that the model returns|nothing is left of it",
        "example inputs on which the model returns something, as an image with objects in it for a detector",
    ),
    (r"as padding", "a 1x1 convolution in the place of the padding can be searched"),
    (r"written into a part of another tensor", "put the parts together by torch.cat"),
    (
        r"convolved with a weight of fixed size|multiplied with a tensor of fixed size",
        "expand the fixed tensor to x.shape[1] channels in the forward, or make it a layer",
    ),
    (r"transposed convolution of several groups", "one group, or one for each channel, can be sliced"),
    (
        r"is not followed|in an unusual way|meet those of two other layers",
        "write this part of the forward with common operations; nothing to do where that cannot be, as in what a "
        "detector does with its outputs",
    ),
    (
        r"taken in order|as if they were places|is picked out|where to sample",
        "nothing to do: what each channel means depends on its place",
    ),
)


@dataclass(frozen=True)
class FrozenPart:
    """Channels that stay at full width, and why."""

    layer: str
    channels: int
    reason: str

    @property
    def hint(self) -> str:
        """What the user can do to have it searched, or that there is nothing to do."""
        return next((hint for pattern, hint in HINTS if re.search(pattern, self.reason)), UNKNOWN)
