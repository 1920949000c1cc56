"""What running a sub-network costs, against the same network sliced out as a plain module.

    python examples/benchmarks/step_cost.py --out examples/benchmarks/step_cost.json
    python examples/benchmarks/step_cost.py --device cuda --out step_cost_cuda.json

For each network, on random images: a training step (forward, backward) of the plain sliced network, the same once
more (A/A, what noise alone gives), a step of the running sub-network, and a min-min step over three candidates. All
of them take turns within one process; a ratio is the median over the rounds of (own time / plain time in the same
round), with the quartiles. Then the time of a cost-model query. Ratios are what to look at: times depend on the
machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet import LocallyFree, Sampled, Supernet, build_space, cross_entropy, slice_model
from nni_cafenet.supernet.minmin import minmin_loss

CASES = (("resnet18", 32, 64), ("resnet18", 96, 32), ("mobilenet_v2", 32, 64), ("mobilenet_v2", 96, 32))


def measure(
    name: str, pixels: int, batch_size: int, *, rounds: int, channels_last: bool, device: torch.device
) -> dict[str, object]:
    """Ratios for one network and image size."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model: nn.Module = getattr(torchvision.models, name)(num_classes=10).to(device, memory_format=layout).train()
    images = torch.randn(batch_size, 3, pixels, pixels).to(device, memory_format=layout)
    batch = images, torch.randint(0, 10, (batch_size,)).to(device)
    space = build_space(model, images[:1])
    supernet = Supernet(model, space)
    rng = np.random.default_rng(0)
    # widths in the middle, of which every group has several candidates
    widths = type(space.largest)(tuple((count + 1) // 2 for count in space.largest.bins_kept))
    sub = space.sample(rng, sharing=LocallyFree(offset=1), widths=widths)
    plain, again = (slice_model(model, space, sub).to(memory_format=layout) for _ in range(2))

    def plain_step(network: nn.Module) -> None:
        network.zero_grad(set_to_none=True)
        cross_entropy(network, batch).backward()

    def sub_step() -> None:
        model.zero_grad(set_to_none=True)
        with supernet.running(sub):
            loss = cross_entropy(model, batch)
        loss.backward()

    def fresh_sub_step() -> None:
        """As in training, where no two steps run the same sub-network: planning is counted."""
        supernet._plans.clear()
        sub_step()

    def full_minmin_step() -> None:
        model.zero_grad(set_to_none=True)
        candidates = Sampled(3).listed(space, widths, LocallyFree(offset=1), rng)
        _, loss = minmin_loss(supernet, candidates, batch, cross_entropy)
        loss.backward()

    steps: dict[str, Callable[[], None]] = {
        "plain": lambda: plain_step(plain),
        "A/A": lambda: plain_step(again),
        "sub-network": sub_step,
        "sub-network, planned anew": fresh_sub_step,
        "min-min of 3": full_minmin_step,
    }
    ratios, seconds = _interleaved(steps, rounds, label=f"{name} {pixels}px", device=device)
    start = time.perf_counter()
    for _ in range(2000):
        space.cost.macs(widths)
    query = (time.perf_counter() - start) / 2000
    return {
        "network": name, "pixels": pixels, "batch": batch_size, "channels_last": channels_last,
        "macs_share": space.cost.macs(widths) / space.cost.macs(space.largest), "plain_ms": 1000 * seconds,
        "ratios": ratios, "cost_query_us": 1e6 * query,
    }  # fmt: skip


def _interleaved(
    steps: dict[str, Callable[[], None]], rounds: int, *, label: str, device: torch.device
) -> tuple[dict[str, list[float]], float]:
    """Quartiles of each step's time over the first one's, round by round, and the first one's median in seconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in tqdm(range(rounds + 2), desc=label, unit="round", leave=False):
        order = list(steps) if number % 2 else list(reversed(steps))
        for name in order:
            start = time.perf_counter()
            steps[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # kernels run on after the call
            if number >= 2:  # the first rounds warm up
                times[name].append(time.perf_counter() - start)
    base = next(iter(steps))
    return {
        name: [round(quartile, 3) for quartile in statistics.quantiles(map(_ratio, own, times[base]), n=4)]
        for name, own in times.items()
        if name != base
    }, statistics.median(times[base])


def _ratio(own: float, base: float) -> float:
    return own / base


def main() -> None:
    """Measure every case and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("step_cost.json"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [
        measure(*case, rounds=options.rounds, channels_last=channels_last, device=options.device)
        for case in CASES
        for channels_last in (False, True)
    ]
    command = f"python examples/benchmarks/step_cost.py --rounds {options.rounds} --threads {options.threads}"
    if options.device.type == "cuda":
        command += f" --device {options.device}"
    device = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "cpu"
    about = {"command": command, "torch": torch.__version__, "python": platform.python_version(), "device": device}
    options.out.write_text(json.dumps({**about, "ratio_quartiles": "[25%, 50%, 75%]", "cases": cases}, indent=2) + "\n")
    for case in cases:
        layout = "channels_last" if case["channels_last"] else "contiguous"
        medians = ", ".join(f"{name} {quartiles[1]:.2f}" for name, quartiles in case["ratios"].items())  # type: ignore[attr-defined]
        print(f"{case['network']} {case['pixels']}px {layout}: plain {case['plain_ms']:.0f} ms; {medians}; "
              f"query {case['cost_query_us']:.1f} us")  # fmt: skip


if __name__ == "__main__":
    main()
