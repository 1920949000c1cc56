from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nni_cafenet import SubNetwork, UnsupportedModel, build_space, count_macs, slice_model
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.private import SMALL, private_copy, small_example, small_images
from tests.models import CLASSES, Plain, conv_bn, example, make
from tests.snapshots import Snapshot


class Around(nn.Module):
    """A model inside of another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner = conv_bn(3, 3), inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.stem(x))


class ComplexNumbers(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))


class Lock(Plain):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Kept(Plain):
    """Holds a tensor that a computation left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.doubled = self.conv1.weight * 2


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such thing")


class OnTheGpu(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cuda()


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch is about to move it to another package
        return torch.ao.quantization.quantize_dynamic(make(Plain).eval(), {nn.Linear}, dtype=torch.qint8)


def scripted() -> nn.Module:
    return torch.jit.script(make(Plain))


def traced() -> nn.Module:
    return torch.jit.trace(make(Plain).eval(), example())


def lazy() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(CLASSES))


def lazy_norm() -> nn.Module:
    return nn.Sequential(conv_bn(3, 8), nn.LazyBatchNorm2d(affine=False), nn.Flatten(), nn.Linear(1152, CLASSES))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "quantised": (
        quantised,
        r"fc \(Linear\) cannot be sliced: it is quantised, which is done after slimming: pass the float model",
    ),
    "scripted": (scripted, r"the model \(.*\) cannot be sliced: it is compiled by TorchScript: pass the plain module"),
    "traced": (traced, r"the model \(.*\) cannot be sliced: it is compiled by TorchScript: pass the plain module"),
    "scripted inside": (
        lambda: Around(scripted()),
        r"inner \(RecursiveScriptModule\) cannot be sliced: it is compiled by TorchScript",
    ),
    "compiled": (
        lambda: torch.compile(make(Plain)),
        r"the model \(OptimizedModule\) cannot be sliced: .* slim the plain module, then compile the result",
    ),
    "compiled inside": (lambda: Around(torch.compile(make(Plain))), r"inner \(OptimizedModule\) cannot be sliced"),
    "traced by fx": (
        lambda: torch.fx.symbolic_trace(make(Plain)),
        r"traced by torch\.fx, with its sizes fixed: pass the original module",
    ),
    "in parallel": (
        lambda: nn.DataParallel(make(Plain)),
        r"the model \(DataParallel\) cannot be sliced: it wraps .*: pass model\.module",
    ),
    "complex": (
        lambda: make(ComplexNumbers),
        r"the model \(ComplexNumbers\) has complex numbers in 'phase', which are not sliced",
    ),
    "complex inside": (lambda: Around(make(ComplexNumbers)), r"inner \(ComplexNumbers\) has complex numbers in"),
    "lazy": (lazy, r"1 \(LazyConv2d\) has no shape yet: run the model once before"),
    "lazy norm": (lazy_norm, r"1 \(LazyBatchNorm2d\) has no shape yet: run the model once before"),
    "lock": (lambda: make(Lock), r"Lock cannot be copied \(TypeError: .*lock.*remove what copy\.deepcopy refuses"),
    "kept tensor": (lambda: make(Kept), r"Kept cannot be copied \(RuntimeError: .*graph leaves"),
    "failing inside": (
        lambda: Around(nn.Sequential(conv_bn(3, 8), nn.Sequential(nn.ReLU(), Fails()))),
        r"forward of Around fails on .* \[\(1, 3, 12, 12\)\] .* in inner\.1\.1: ValueError: no such thing",
    ),
}


class Values:
    """Tensors and modes, of models that a Snapshot cannot be taken of."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors = {name: (tensor, _value(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()}
        self.modes = {name: module.training for name, module in model.named_modules()}

    def assert_unchanged(self) -> None:
        now = self.model.state_dict(keep_vars=True)
        assert list(now) == list(self.tensors)
        for name, (tensor, value) in self.tensors.items():
            assert type(now[name]) is type(tensor), name
            if value is not None:
                assert torch.equal(now[name], value), name
        assert {name: module.training for name, module in self.model.named_modules()} == self.modes


def _value(tensor: object) -> torch.Tensor | None:
    lazy = isinstance(tensor, nn.parameter.UninitializedTensorMixin)
    return tensor.detach().clone() if isinstance(tensor, torch.Tensor) and not lazy else None


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_sliced_is_refused_with_the_module_named_and_left_as_it_is(name: str) -> None:
    factory, message = REFUSED[name]
    model = factory()
    before = Values(model) if name in ("scripted", "scripted inside", "lazy", "lazy norm") else Snapshot(model)
    with pytest.raises(UnsupportedModel, match=message):
        build_space(model, example())
    before.assert_unchanged()


@pytest.mark.skipif(torch.cuda.is_available(), reason="here .cuda() works")
def test_a_forward_that_wants_a_gpu_is_refused_with_the_module_named() -> None:
    model = Around(nn.Sequential(conv_bn(3, 8), OnTheGpu()))
    before = Snapshot(model)
    with pytest.raises(UnsupportedModel, match=r"forward of Around fails on .* in inner\.1: (RuntimeError|Assertion)"):
        build_space(model, example())
    before.assert_unchanged()


def test_the_private_copy_is_in_eval_mode_without_gradients_or_shared_tensors() -> None:
    model = make(Plain).train()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = Snapshot(model)
    private = private_copy(model, Example(example(1)))
    before.assert_unchanged()
    assert type(private) is Plain
    assert not any(module.training for module in private.modules())
    assert all(parameter.grad is None for parameter in private.parameters())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in private.state_dict().values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in private.modules())


# detectors of torchvision


class Detector(nn.Module):
    """What a detector does with its images, and a layer."""

    def __init__(self, least: int = 800, most: int = 1333, *, fails: bool = False) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(least, most, [0.5] * 3, [0.25] * 3)
        self.body, self.fc, self.fails = conv_bn(3, 8), nn.Linear(8, CLASSES), fails
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        x = self.transform(images)[0].tensors
        self.seen.append(tuple(x.shape[2:]))
        if self.fails:
            raise ValueError("no such thing")
        return self.fc(self.body(x).relu().mean((2, 3)))


@contextmanager
def sizes_restored(model: Detector) -> Iterator[None]:
    before = model.transform.min_size, model.transform.max_size
    yield
    assert (model.transform.min_size, model.transform.max_size) == before


def test_a_detector_resizes_its_images_small_inside_the_block_alone() -> None:
    model = Detector()
    images = [torch.rand(3, 40, 60)]
    with sizes_restored(model):
        with small_images(model):
            model(images)
        model(images)
    (small, full) = model.seen
    assert SMALL <= max(small) <= 2 * SMALL
    assert min(full) == 800


def test_sizes_come_back_after_an_error_too() -> None:
    model = Detector(fails=True)
    with sizes_restored(model):
        with pytest.raises(ValueError, match="no such thing"), small_images(model):
            model([torch.rand(3, 40, 60)])
    assert max(model.seen[0]) <= 2 * SMALL


def test_sizes_that_are_small_already_stay() -> None:
    model = Detector(32, 64)
    with sizes_restored(model), small_images(model):
        assert (model.transform.min_size, model.transform.max_size) == ((32,), 64)


def test_the_channels_of_a_detector_are_found_and_its_own_sizes_are_left() -> None:
    model = Detector(96, 160)
    before = Snapshot(model)
    with sizes_restored(model):
        space = build_space(model, ([torch.rand(3, 40, 60)],))
    before.assert_unchanged()
    assert [group.name for group in space.groups] == ["body.0"]


class Sized(Plain):
    """Takes images of certain sizes only, and notes what it got."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.shape[-1])
        if x.shape[-1] not in self.sizes:
            raise ValueError("another size")
        return super().forward(x)


@pytest.mark.parametrize(
    ("sizes", "given", "used"), [((64, 96), 96, 64), ((96,), 96, 96), ((64,), 64, 64), ((16,), 16, 16)]
)
def test_large_images_are_cropped_where_the_model_takes_that(sizes: tuple[int, ...], given: int, used: int) -> None:
    small = small_example(Sized(*sizes).eval(), Example(torch.rand(1, 3, given, given)))
    assert small.tensors[0].shape == (1, 3, used, used)


def test_the_costs_of_large_images_are_counted_at_their_size() -> None:
    model, images = make(lambda: Sized(64, 96)), torch.rand(1, 3, 96, 96)
    space = build_space(model, images)
    for widths in (space.smallest, space.largest):
        slim = slice_model(model, space, SubNetwork.fixed(widths))
        assert space.cost.macs(widths) == count_macs(slim, images)


class OverPositions(nn.Module):
    """Attention over the positions of a coarse map, of which a crop leaves a single one: its softmax is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv_bn(3, 8), nn.MaxPool2d(64)
        self.attend = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        return self.fc((x * self.attend(x).flatten(2).softmax(2).view(-1, 1, *x.shape[2:])).sum((2, 3)))


def test_what_shows_on_large_images_alone_is_searched() -> None:
    space = build_space(make(OverPositions), torch.rand(1, 3, 192, 192))
    assert [group.name for group in space.groups] == ["stem.0", "attend.0"]
