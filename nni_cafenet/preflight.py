"""What should be known of a search space before anything is trained? The pre-flight report, as data and as text."""

from __future__ import annotations

import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from nni_cafenet.cost import CostModel
from nni_cafenet.frozen import FrozenPart
from nni_cafenet.widths import Bins, WidthGroup, Widths

COLUMNS = 120  # of the text
LONGEST_NAME = 65  # what the other columns of the table of groups leave
LONGEST_REASON = 300  # a third-party forward's own errors may be pages
LISTED = 5  # names before "and 7 more"

NUMBER = re.compile(r"\d+")
# operations that multiply matrices; what else fvcore leaves out is mostly done element by element, and cheap
COSTLY = re.compile(r"attention|lstm|gru|rnn|conv|matmul|m[mv]$|einsum|cdist|dot$|::bilinear|fft")


@dataclass(frozen=True, eq=False)
class Preflight:
    """The report on a search space, whose fields these are; made by :meth:`nni_cafenet.SearchSpace.preflight`."""

    groups: tuple[WidthGroup, ...]
    bins: tuple[Bins, ...]
    cost: CostModel
    frozen: tuple[FrozenPart, ...]
    uncounted: tuple[tuple[str, int], ...]
    data_dependent: tuple[str, ...]

    @property
    def architectures(self) -> int:
        """How many combinations of widths there are."""
        return math.prod(bins.count for bins in self.bins)

    @property
    def searchable_share(self) -> float:
        """The share of the full network's MACs in layers whose cost depends on some width."""
        return 1 - self._share(sum(self._frozen_macs().values()))

    def macs_shares(self) -> list[float]:
        """For each group the share of the full network's MACs in its layers; one between two groups counts for both."""
        slopes = self.cost.macs_per_unit()
        return [self._share(float(slope) * group.units) for slope, group in zip(slopes, self.groups, strict=True)]

    def warnings(self) -> list[str]:
        """What may make a search of this space disappoint."""
        found = []
        if self.searchable_share < 0.5:
            most = sorted(self._frozen_macs().items(), key=lambda pair: -pair[1])[:LISTED]
            found.append(
                f"{1 - self.searchable_share:.0%} of the MACs sit in frozen layers, which no width changes; most in "
                + ", ".join(f"{layer or 'the forward itself'} ({self._share(macs):.1%})" for layer, macs in most)
            )
        costly = [(name, times) for name, times in self.uncounted if COSTLY.search(name)]
        if costly:
            names = ", ".join(f"{name.rpartition('::')[2]} ({times} times)" for name, times in costly)
            found.append(
                f"fvcore does not count {names}: the true cost is higher by what that takes, and no budget bounds it"
            )
        if self.data_dependent:
            found.append(
                f"{_listed(self.data_dependent)} run as often as the data say, as a detector's heads do for each "
                f"proposal: their MACs are those of the full network on the example"
            )
        uncut, share = self._uncut()
        return [*found, uncut] if uncut and share >= 0.05 else found

    def notes(self) -> list[str]:
        """What is as it should be, and yet good to know."""
        uncut, share = self._uncut()
        found = [uncut] if uncut and share < 0.05 else []
        if any(edge % 8 for bins in self.bins if bins.edges[-1] % 8 == 0 for edge in bins.edges):
            found.append("channel counts that are no multiple of 8 are slow on many devices: round_to=8 avoids them")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report in plain types, for JSON; shares are of the full network's MACs, from 0 to 1."""
        return {
            "model": self._costs(self._largest),
            "largest": self._costs(self._largest),
            "smallest": self._costs(self._smallest),
            "searchable_share": self.searchable_share,
            "architectures": self.architectures,
            "groups": [
                {
                    "name": group.name, "layers": _layers(group), "members": list(group.members),
                    "channels": group.channels, "least_channels": bins.edges[1], "bins": bins.count,
                    "bin_size": bins.size, "macs_share": share,
                }
                for group, bins, share in zip(self.groups, self.bins, self.macs_shares(), strict=True)
            ],
            "frozen": [
                {"layer": part.layer, "channels": part.channels, "reason": part.reason, "hint": part.hint}
                for part in self.frozen
            ],
            "uncounted": dict(self.uncounted),
            "data_dependent": list(self.data_dependent),
            "warnings": self.warnings(),
            "notes": self.notes(),
        }  # fmt: skip

    def text(self) -> str:
        """The report for people, at most 120 columns wide."""
        remarks = [("WARNING: ", text) for text in self.warnings()] + [("note: ", text) for text in self.notes()]
        paragraphs = [
            self._group_lines(),
            self._total_lines(),
            list(self._frozen_lines()),
            [line for label, text in remarks for line in _wrapped(label, text)],
        ]
        return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)

    def _group_lines(self) -> list[str]:
        rows = [
            (
                _shortened(group.name), str(len(_layers(group))), str(group.channels), str(bins.edges[1]),
                str(bins.count), str(bins.size), f"{share:.1%}",
            )
            for group, bins, share in zip(self.groups, self.bins, self.macs_shares(), strict=True)
        ]  # fmt: skip
        return [
            *_table(("group", "layers", "channels", "least", "bins", "bin size", "MACs"), rows),
            "least: the fewest channels; MACs: the share in a group's layers; those between two groups count twice",
        ]

    def _total_lines(self) -> list[str]:
        largest, smallest = self._costs(self._largest), self._costs(self._smallest)
        rows = [
            (label, f"{largest[key]:,}", f"{smallest[key]:,}", f"{smallest[key] / max(largest[key], 1):.1%}")
            for label, key in (("MACs", "macs"), ("params", "params"))
        ]
        return [
            f"{len(self.groups)} groups, {_count_text(self.architectures)} architectures (combinations of widths); "
            f"{self.searchable_share:.1%} of the MACs are in searchable layers",
            *_table(("", "full network", "smallest", "of full"), rows),
        ]

    def _frozen_lines(self) -> Iterator[str]:
        """A few lines for each reason, those of one remedy together; what nothing can be done about comes last."""
        if self.frozen:
            yield "frozen, at full width in every sub-network:"
        alike = _folded([" ".join(part.reason.split()) for part in self.frozen])
        found = [(reason, [self.frozen[place] for place in places]) for reason, places in alike.items()]
        hints = list(dict.fromkeys(parts[0].hint for _, parts in found))
        hints.sort(key=lambda hint: hint.startswith("nothing to do"))
        above = ""
        for reason, parts in sorted(found, key=lambda pair: hints.index(pair[1][0].hint)):
            sizes = sorted({part.channels for part in parts})
            span = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
            yield from _wrapped("- ", textwrap.shorten(reason, LONGEST_REASON, placeholder=" ..."))
            yield from _wrapped("    ", f"layers: {_listed([part.layer for part in parts])}; channels: {span}")
            yield from _wrapped("    ", f"remedy: {'as above' if parts[0].hint == above else parts[0].hint}")
            above = parts[0].hint

    def _uncut(self) -> tuple[str, float]:
        """What to say of the groups of a single bin, if there are any, and their share of the MACs."""
        rows = zip(self.groups, self.bins, self.macs_shares(), strict=True)
        shares = {group.name: share for group, bins, share in rows if bins.count == 1}
        text = (
            f"a group of a single bin keeps all its channels: {_listed(list(shares))}, with "
            f"{sum(shares.values()):.1%} of the MACs; finer bins by bins={{NAME: SIZE}}, or a smaller min_bin, "
            f"round_to or min_channels"
        )
        return text if shares else "", sum(shares.values())

    def _frozen_macs(self) -> dict[str, int]:
        """The MACs that no width changes, by layer."""
        found: dict[str, int] = defaultdict(int)
        for term in self.cost.terms:
            if term.macs and not term.groups:
                found[term.layer] += term.macs
        return found

    def _share(self, macs: float) -> float:
        return macs / max(self.cost.macs(self._largest), 1)

    def _costs(self, widths: Widths) -> dict[str, int]:
        return {"macs": self.cost.macs(widths), "params": self.cost.params(widths)}

    @property
    def _largest(self) -> Widths:
        return Widths(tuple(bins.count for bins in self.bins))

    @property
    def _smallest(self) -> Widths:
        return Widths((1,) * len(self.bins))


def _layers(group: WidthGroup) -> list[str]:
    """The layers, and the bare parameters, that the group runs through."""
    return list(dict.fromkeys(member.rpartition(".")[0] for member in group.members))


def _folded(texts: Sequence[str]) -> dict[str, list[int]]:
    """Texts that differ in numbers alone as one, with * for these numbers; where each stands among `texts`."""
    alike: dict[str, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        alike[NUMBER.sub("*", text)].append(place)
    found = {}
    for places in alike.values():
        columns = zip(*(NUMBER.findall(texts[place]) for place in places), strict=True)
        numbers = [column[0] if len(set(column)) == 1 else "*" for column in columns]
        between = NUMBER.split(texts[places[0]])
        found["".join(part for pair in zip(between, [*numbers, ""], strict=True) for part in pair)] = places
    return found


def _listed(names: Sequence[str]) -> str:
    """Names with commas between; those that differ in numbers alone as one, with how many they are."""
    distinct = list(dict.fromkeys(names))
    found = [name if len(places) == 1 else f"{name} ({len(places)})" for name, places in _folded(distinct).items()]
    return ", ".join(found[:LISTED]) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "")


def _count_text(count: int) -> str:
    """A count, which may be too large for a float."""
    return f"{count:,}" if count < 10**6 else f"{Decimal(count):.1e}"


def _shortened(name: str) -> str:
    """A long name without its middle: the ends tell which layer it is."""
    keep = (LONGEST_NAME - 3) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:keep]}...{name[-keep:]}"


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        label + text, COLUMNS, subsequent_indent=" " * len(label), break_long_words=False, break_on_hyphens=False
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns, the first to the left and the numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
