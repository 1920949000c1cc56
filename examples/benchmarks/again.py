"""The networks of compare.py's cells, trained again from other initialisations.

    python examples/benchmarks/again.py --data DIR --network vgg13 --seeds 0 1 --times 2 --out OUT

Searches are dear, and one training of what they find says little: two of the same network differ by a point. Each
cell from scratch gets `again`, what further trainings gave, by the same recipe for the same number of updates;
summarise.py takes the mean of all. The same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from setting import Setting, add_setting, nearest, setting_of, trained_again, write_json
from tqdm.auto import tqdm

from nni_cafenet import SubNetwork
from nni_cafenet.networks import Network

APART = 1000  # seeds of the trainings of one cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--times", type=int, default=2, help="further trainings of each network")
    parser.add_argument("--budgets", nargs="+", help="all of the cells' unless given")
    parser.add_argument("--methods", nargs="+", help="all of the cells' unless given")
    options = parser.parse_args()
    for seed in options.seeds:
        setting = setting_of(options, seed)
        cells = sorted((options.out / options.size / options.network).glob(f"*-scratch-{seed}.json"))
        for path in tqdm(cells, desc=f"seed {seed}", unit="cell"):
            row = json.loads(path.read_text())
            chosen = (options.methods is None or row["method"] in options.methods) and (
                options.budgets is None or row["budget"] in options.budgets
            )
            if chosen and "unreachable" not in row:
                train_again(setting, path, row, options.times)


def train_again(setting: Setting, path: Path, row: dict[str, Any], times: int) -> None:
    """Until the network of the cell `row` has been trained `times` times more, the cell written each time."""
    space = setting.channels
    network = Network(space, SubNetwork.fixed(nearest(space, row["widths"])))
    assert network.macs == row["macs"], f"{path} holds another network"
    for number in range(len(row.setdefault("again", [])), times):
        seed = setting.seed + APART * (number + 1)
        name = f"again-{number}-{path.stem}"
        row["again"].append(trained_again(setting, network, name, seed=seed, method=row["method"]))
        write_json(path, row)


if __name__ == "__main__":
    main()
