"""What the README shows is what is there."""

import ast
import csv
import json
import re
from pathlib import Path

import pytest
import torchvision

import nni_cafenet
from nni_cafenet.cli import main
from tests.built import built, some_subnetworks
from tests.data import EXAMPLE, batches, net
from tests.models import example

ROOT = Path(nni_cafenet.__file__).parent.parent
README = (ROOT / "README.md").read_text()
TOUR = (ROOT / "nni_cafenet" / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_hello_world_is_the_example_of_that_name():
    program = (ROOT / "examples" / "hello_world.py").read_text()
    docstring = ast.get_docstring(ast.parse(program), clean=False)
    assert blocks("python")[0].strip() == program.split(f'"""{docstring}"""')[1].strip()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_in_the_readme_imports_names_that_exist(block):
    names = [
        alias.name
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "nni_cafenet"
        for alias in node.names
    ]
    assert names
    assert all(name in nni_cafenet._NNI or hasattr(nni_cafenet, name) for name in names)


def test_the_section_on_speedup_and_peers_runs():
    (block,) = (block for block in blocks("python") if "ModelSpeedup" in block)
    model, space = built("residual")
    sub = some_subnetworks(space)[-1]
    names = {"model": model, "space": space, "sub": sub, "images": example()}
    exec(block, names)
    slim = nni_cafenet.slice_model(model, space, sub).state_dict()
    for quick in (names["quick"].state_dict(), names["by_hand"].state_dict()):
        assert all(tensor.shape == quick[key].shape for key, tensor in slim.items())
    assert names["slim"].inner1[0].out_channels == 5


@pytest.mark.filterwarnings("ignore")  # NNI's and torchvision's own
def test_the_constraints_bound_the_space_shown_before_them() -> None:
    from nni_cafenet.nas.constraints import limits_under

    (shown,) = (block for block in blocks("python") if "exp.run()" in block and "space = " in block)
    (space,) = (line for line in shown.splitlines() if line.startswith("space = "))
    (block,) = (block for block in blocks("python") if "RangeProfilerFilter" in block)
    names = {"torchvision": torchvision, "budget": nni_cafenet.Budget(max_macs="50%")}
    names |= {"MyLatency": object, "WidthModelSpace": nni_cafenet.WidthModelSpace}
    exec(space, names)
    made = [node.value for node in ast.parse(block).body if isinstance(node, ast.Expr)]
    exec(block, names)
    strategies = [eval(ast.unparse(call), names) for call in made]
    limits = [limits_under(names["space"].space, strategy.budget, strategy.filter) for strategy in strategies]
    assert [limit.max_macs for limit in limits] == [
        3_000_000,
        *[names["space"].space.limits(names["budget"]).max_macs] * 3,
    ]


def test_a_trained_network_is_slimmed_as_shown(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("python") if "compare_widths(" in block)
    train, valid, test = (batches(2, 16, seed=seed) for seed in (0, 5, 6))
    names = {"make_trained": net, "images": EXAMPLE, "train": train, "valid": valid, "test": test}
    names |= {"space": nni_cafenet.build_space(net(), EXAMPLE, min_bin=0.25)}
    exec(block.replace("20", "2").replace("runs/mine", str(tmp_path)), names)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["slim"]["macs"] <= result["dense"]["macs"] / 10 and "inherited weights" in result["accuracy_of"]


def test_commands_in_the_readme_have_the_options_shown(capsys):
    shown = re.findall(r"nni-cafenet (\w+)((?: +[^\n`]+)?)", "\n".join(blocks("bash")))
    assert {command for command, _ in shown} >= {"demo", "inspect", "search"}
    for command, words in shown:
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        usage = capsys.readouterr().out
        assert all(option in usage for option in re.findall(r"--[\w-]+", words))


def test_demo_table_is_that_of_the_committed_result():
    result = json.loads((ROOT / "examples" / "demo" / "result.json").read_text())
    for name in ("dense", "slim", "uniform", "random"):
        assert f"{result[name]['accuracy']:.4f} ± {result[name]['accuracy_std']:.4f}" in README
    with open(ROOT / "examples" / "demo" / "widths.csv") as file:
        assert {row["group"]: int(row["slim"]) for row in csv.DictReader(file)} == result["widths"]


def test_tour_names_every_file_and_no_other():
    files = {path.relative_to(ROOT / "nni_cafenet").as_posix() for path in (ROOT / "nni_cafenet").rglob("*.py")}
    told = set(re.findall(r"`([\w/]+\.py)`", TOUR))
    in_nas = {name for name in files if name.startswith("nas/")}  # told of as one room
    assert told == {name for name in files if not name.endswith("__init__.py")} - in_nas
