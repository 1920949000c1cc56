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
sys.modules["nni"] = None
try:
    import nni_cafenet.export.speedup
except ModuleNotFoundError as error:
    print(error)
"""


def test_nothing_but_the_adapter_needs_nni_and_that_says_so():
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, check=True)
    imported, *messages = ran.stdout.splitlines()
    assert imported == "[]"
    for message, missing in zip(messages, ("nni", "pytorch_lightning", "nni"), strict=True):
        assert message.startswith("CafeNet, WidthModelSpace, its profilers and NNI's speedup need")
        assert f" need {missing}, not installed here: pip install 'nni>=3.0,<4'" in message
