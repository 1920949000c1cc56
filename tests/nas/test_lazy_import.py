"""Without NNI or Lightning everything but the NNI adapter works, and that one says what to install."""

import subprocess
import sys

import pytest


def run(code):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_neither():
    code = "import sys, nni_cafenet; sys.exit(bool({'nni', 'pytorch_lightning'} & set(sys.modules)))"
    assert run(code).returncode == 0


@pytest.mark.parametrize("package", ["nni", "pytorch_lightning"])
@pytest.mark.parametrize("name", ["CafeNet", "WidthModelSpace"])
def test_says_what_to_install(package, name):
    ran = run(f"import sys; sys.modules[{package!r}] = None; from nni_cafenet import {name}")
    assert f"ModuleNotFoundError: CafeNet and WidthModelSpace need {package}, not installed here: pip" in ran.stderr
