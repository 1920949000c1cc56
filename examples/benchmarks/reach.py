"""Which third-party networks can be slimmed, and how much of each: every one is sliced at random and compared.

    python examples/benchmarks/reach.py --family torchvision --out examples/benchmarks/reach.csv
    python examples/benchmarks/reach.py --family timm --out examples/benchmarks/reach.csv
    python examples/benchmarks/reach.py --family others --out examples/benchmarks/reach.csv
    python examples/benchmarks/reach.py --out examples/benchmarks/reach.csv --summary

Each model runs in a process of its own with a time limit, random weights scaled so that the input shows in the output,
random BatchNorm statistics and a non-zero head, in float64: `build_space`, whose own oracles compare slices with the
full network that ignores the removed channels, then three random sub-networks by locally free sharing. The running
sub-network must equal the sliced model in eval and in train mode (detectors: eval), and the cost model fvcore and
numel() on the sliced model (but where MACs depend on the data). With --onnx a sample is exported and compared in
onnxruntime. A row is written when its model is done: the same command goes on where it was.

Verdicts: ok; frozen (ok, but for more than the output layers, which stay as they are); refused (with the reason);
wrong; crashed; timeout.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reach_models import FAMILIES
from tables import read_csv, write_csv
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet import LocallyFree, SearchSpace, SubNetwork, Supernet, UnsupportedModel, build_space, slice_model
from nni_cafenet.tracing.example import Example, output_tensors
from nni_cafenet.tracing.macs import count_macs
from nni_cafenet.tracing.trial import enliven, randomise

SUBNETWORKS = 3
TOLERANCE = 1e-6  # relative to the largest output, in float64; one wrong channel is far above


@dataclass
class Row:
    """What was found of one model."""

    library: str
    family: str
    model: str
    pixels: int = 0
    verdict: str = "crashed"
    searchable: float = 0.0  # share of the MACs in layers with a searchable side
    smallest: float = 1.0  # smallest reachable share of the MACs
    groups: int = 0
    frozen: int = 0
    seconds: float = 0.0  # build_space
    error: float = 0.0  # the largest, relative
    onnx: str = ""
    reason: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--family", choices=tuple(FAMILIES), help="the library whose models are tried")
    parser.add_argument("--match", default="*", help="only models whose names match this glob")
    parser.add_argument("--out", type=Path, required=True, help="CSV; models that it holds are not tried again")
    parser.add_argument("--limit", type=int, default=300, help="seconds for a model")
    parser.add_argument("--jobs", type=int, default=2, help="models at once, one thread each")
    parser.add_argument("--onnx", default="", help="globs, comma-separated: models to export and run in onnxruntime")
    parser.add_argument("--summary", action="store_true", help="print the table of what the CSV holds")
    parser.add_argument("--one", metavar="MODEL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        logging.getLogger("nni_cafenet").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        print(json.dumps(asdict(examine(options.family, options.one, onnx=bool(options.onnx)))))
        return
    if options.family:
        run_all(options)
    if options.summary:
        print(summary(read_csv(options.out, Row)))


def run_all(options: argparse.Namespace) -> None:
    rows = {(row.library, row.model): row for row in read_csv(options.out, Row)}
    names = fnmatch.filter(FAMILIES[options.family].names(), options.match)
    missing = [name for name in names if (options.family, name) not in rows]
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(missing), unit="model") as bar:
        for row in pool.map(lambda name: _in_a_process(options, name), missing):
            rows[row.library, row.model] = row
            write_csv(options.out, Row, sorted(rows.values(), key=lambda row: (row.library, row.family, row.model)))
            bar.set_postfix_str(f"{row.model}: {row.verdict}")
            bar.update()


def _in_a_process(options: argparse.Namespace, name: str) -> Row:
    wanted = any(fnmatch.fnmatch(name, glob) for glob in options.onnx.split(","))
    command = [sys.executable, __file__, "--family", options.family, "--one", name, "--out", str(options.out)]
    row = Row(options.family, FAMILIES[options.family].group(name), name)
    try:
        done = subprocess.run(
            [*command, *(["--onnx", "*"] if wanted else [])], capture_output=True, text=True, timeout=options.limit,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        row.verdict, row.reason = "timeout", f"more than {options.limit} seconds"
        return row
    if done.returncode:
        row.reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
        return row
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def examine(library: str, name: str, *, onnx: bool = False) -> Row:
    """Build the space of one model, slice it at random, and compare."""
    torch.manual_seed(0)
    catalogue = FAMILIES[library]
    row = Row(library, catalogue.group(name), name)
    model, example, row.pixels = catalogue.make(name)
    randomise(model, seed=0)
    enliven(model.eval(), lambda: Example(example).run(model))
    start = time.perf_counter()
    try:
        space = build_space(model, example)
    except UnsupportedModel as error:
        row.verdict, row.reason = "refused", str(error)
        return row
    finally:
        row.seconds = round(time.perf_counter() - start, 1)
    row.groups, row.frozen = len(space.groups), len(space.frozen)
    row.searchable = round(space.searchable_share, 3)
    row.smallest = round(space.cost.macs(space.smallest) / space.cost.macs(space.largest), 4)
    reasons = {part.reason: part.layer for part in space.frozen if "output" not in part.reason}
    row.reason = "; ".join(f"{layer}: {reason}" for reason, layer in reasons.items())
    faults = list(compare(model, space, example, row))
    row.verdict = "wrong" if faults else "frozen" if reasons else "ok"
    if faults:
        row.reason = "; ".join(faults)
    if onnx and not faults:
        try:
            row.onnx = onnx_agrees(model, space, example)
        except Exception as error:  # whatever an exporter or a runtime raises
            row.onnx = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row


def compare(model: nn.Module, space: SearchSpace, example: Any, row: Row) -> Iterable[str]:
    """What is wrong with three random sub-networks."""
    rng = np.random.default_rng(0)
    double = copy.deepcopy(model).double()
    inputs = Example(example).double()
    supernet = Supernet(double, space)
    # layers of full width are compared too: what a detector returns is cut out of them, and may be nothing at all
    observed = {part.layer for part in space.frozen}
    modes = (False,) if isinstance(example, tuple) else (False, True)  # a detector wants targets in train mode
    for _ in range(SUBNETWORKS):
        sub = space.sample(rng, sharing=LocallyFree(offset=1))
        counted = count_macs(slice_model(model, space, sub), example)
        if counted != space.cost.macs(sub.widths) and not space.data_dependent:
            yield f"the cost model says {space.cost.macs(sub.widths)} MACs, fvcore {counted}"
        slim = slice_model(double, space, sub)
        numel = sum(parameter.numel() for parameter in slim.parameters())
        if numel != space.cost.params(sub.widths):
            yield f"the cost model says {space.cost.params(sub.widths)} parameters, numel() {numel}"
        for mode in modes:
            slim.train(mode)
            double.train(mode)
            with supernet.running(sub) as running:
                left = _outputs(running, inputs, observed)
            error = _error(left, _outputs(slim, inputs, observed))
            row.error = max(row.error, error)
            if not error <= TOLERANCE:
                yield f"sliced and running differ by {error:.1e} ({'train' if mode else 'eval'} mode)"


def _outputs(model: nn.Module, inputs: Example, observed: Collection[str]) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    layers = [layer for name, layer in model.named_modules() if name in observed]
    handles = [
        layer.register_forward_hook(lambda _, __, output: seen.extend(output_tensors(output))) for layer in layers
    ]
    torch.manual_seed(0)  # dropout, stochastic depth
    try:
        with torch.no_grad():
            return [*output_tensors(inputs.run(model)), *seen]
    finally:
        for handle in handles:
            handle.remove()


def _error(left: list[torch.Tensor], right: list[torch.Tensor]) -> float:
    if [out.shape for out in left] != [out.shape for out in right]:
        return float("inf")
    errors = [
        (a - b).abs().max() / b.abs().max().clamp_min(1e-30) for a, b in zip(left, right, strict=True) if a.numel()
    ]
    return max(map(float, errors), default=float("nan"))


def onnx_agrees(model: nn.Module, space: SearchSpace, example: Any) -> str:
    """Export a sliced model, load it in onnxruntime, compare; "ok" or what is wrong."""
    import onnxruntime

    sub = SubNetwork.fixed(space.sample(np.random.default_rng(1)).widths)
    slim = slice_model(model, space, sub).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = str(Path(folder) / "slim.onnx")
        torch.onnx.export(slim, (example,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = {session.get_inputs()[0].name: example.numpy()}
        error = _error([torch.from_numpy(out) for out in session.run(None, given)], output_tensors(slim(example)))
    return "ok" if error < 1e-3 else f"differs by {error:.1e}"


def summary(rows: list[Row]) -> str:
    lines = []
    for library in sorted({row.library for row in rows}):
        own = [row for row in rows if row.library == library]
        verdicts = defaultdict(int)
        for row in own:
            verdicts[row.verdict] += 1
        most = sum(row.searchable > 0.5 for row in own)
        lines.append(
            f"{library}: {len(own)} models of {len({row.family for row in own})} families: "
            + ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
            + f"; {most} ({most / len(own):.0%}) with more than half of their MACs searchable"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
