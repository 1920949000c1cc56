"""Without NNI or Lightning everything but the NNI adapter works, and that one says what to install."""

import subprocess
import sys

CODE = """
import sys
import nni_cafenet

print(sorted({"nni", "pytorch_lightning"} & set(sys.modules)))
for name, package in (("CafeNet", "nni"), ("WidthModelSpace", "pytorch_lightning")):
    sys.modules[package] = None  # as if it were not installed
    try:
        getattr(nni_cafenet, name)
    except ModuleNotFoundError as error:
        print(error)
    del sys.modules[package]
"""


def test_nothing_but_the_adapter_needs_nni_and_that_says_so():
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=True)
    imported, without_nni, without_lightning = ran.stdout.splitlines()
    assert imported == "[]"
    needed = "CafeNet, WidthModelSpace and its profilers need {}, not installed here: pip install 'nni>=3.0,<4'"
    assert without_nni.startswith(needed.format("nni"))
    assert without_lightning.startswith(needed.format("pytorch_lightning"))
