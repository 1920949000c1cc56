"""NNI: the model space, the strategy and what must be mended; the only importers of nni but export/speedup.py."""

from __future__ import annotations

from importlib.util import find_spec

_missing = [package for package in ("nni", "pytorch_lightning") if find_spec(package) is None]
if _missing:
    # nni.nas imports pytorch_lightning without saying so: its own error would name a file deep inside of nni
    raise ModuleNotFoundError(
        f"CafeNet, WidthModelSpace, its profilers and NNI's speedup need {' and '.join(_missing)}, not installed here: "
        f"pip install 'nni>=3.0,<4' 'pytorch_lightning>=2.4,<3' 'setuptools<81'",
        name=_missing[0],
    )
