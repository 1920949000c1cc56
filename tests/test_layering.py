"""A file of the package imports only from files above it, and third parties stay in the rooms given to them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nni_cafenet

PACKAGE = Path(nni_cafenet.__file__).parent

# from the top down: a file may import from those before it in this list
ORDER = [
    "errors",
    "widths",
    "cost",
    "sharing",
    "frozen",
    "preflight",
    "space",
    "layers",
    "modes",
    "files",
    "distributed",
    "growing",
    "peers.choice",
    "peers.masks",
    "peers.pruned",
    "export.slicing",
    "export.slim_file",
    "tracing.example",
    "tracing.private",
    "tracing.labels",
    "tracing.call",
    "tracing.moving",
    "tracing.mixing",
    "tracing.rules",
    "tracing.graph",
    "tracing.groups",
    "tracing.macs",
    "tracing.terms",
    "tracing.trial",
    "tracing.verify",
    "tracing.bins",
    "tied",
    "tracing.build",
    "widen",
    "search.searcher",
    "search.random_search",
    "search.evolution",
    "search.greedy",
    "search.predictor",
    "search.stages",
    "supernet.objectives",
    "importance",
    "supernet.distillation",
    "supernet.slices",
    "supernet.supernet",
    "supernet.candidates",
    "supernet.minmin",
    "supernet.recalibrate",
    "supernet.evaluate",
    "checkpoint",
    "train",
    "alone",
    "checks",
    "summary",
    "plots",
    "page",
    "report",
    "result",
    "sweep",
    "phases",
    "networks",
    "halving",
    "trainings",
    "run",
    "nas.compat",
    "export.speedup",
]
# whatever is not in the list stands below all of it, in any order among itself: compare, demo, cli, the rest of nas

# who may import a third party
ROOMS = {
    "torch_pruning": ("export.",),
    "fvcore": ("tracing.",),
    "nni": ("nas.", "export.speedup"),
    "pytorch_lightning": ("nas.",),
}
PURE = ("errors", "widths", "cost", "sharing", "frozen", "preflight", "space", "search.")  # without torch
# the doors of nni_cafenet/__init__.py
LAZY = {("", "nas.model_space"), ("", "nas.profiler"), ("", "nas.strategy")}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(path: Path) -> list[str]:
    """Dotted names of all that a file imports, inside functions too, but for TYPE_CHECKING."""
    found: list[str] = []
    queue: list[ast.AST] = [ast.parse(path.read_text())]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports are not used here"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        queue += [] if is_type_checking(node) else list(ast.iter_child_nodes(node))
    return found


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_files(module: str) -> set[str]:
    """The package's own files that a file imports."""
    own = set()
    for name in imported(FILES[module]):
        head, _, rest = name.partition(".")
        if head == "nni_cafenet":
            whole = [part for part in (rest, rest.rpartition(".")[0]) if part in FILES]
            own.add(whole[0])
    return own


def place(module: str) -> int:
    return ORDER.index(module) if module in ORDER else len(ORDER)


@pytest.mark.parametrize("module", [name for name in FILES if name in ORDER])
def test_a_file_imports_only_from_files_above_it(module: str) -> None:
    below = {name for name in imported_files(module) if name == "" or place(name) >= place(module)}
    assert not below, f"{module} imports {sorted(below)}, which stand below it"


@pytest.mark.parametrize("package", sorted({name.split(".")[0] for name in FILES if "." in name}))
def test_a_package_s_init_imports_nothing_of_the_project_from_below(package: str) -> None:
    others = {name for name in imported_files(package) if not name.startswith(f"{package}.")}
    assert not others


@pytest.mark.parametrize("party", ROOMS)
def test_a_third_party_is_imported_in_its_room_alone(party: str) -> None:
    users = [
        module
        for module, path in FILES.items()
        if any(name.split(".")[0] == party for name in imported(path)) and not f"{module}.".startswith(ROOMS[party])
    ]
    assert users == []


def test_the_arithmetic_imports_no_torch() -> None:
    users = [
        module
        for module, path in FILES.items()
        if f"{module}.".startswith(tuple(f"{name.rstrip('.')}." for name in PURE))
        and any(name.split(".")[0] in ("torch", "torchvision", "torch_pruning", "fvcore") for name in imported(path))
    ]
    assert users == []


def test_the_core_is_all_there() -> None:
    optional = {"files", "search.greedy", "search.stages", "plots", "summary", "export.slim_file"}
    assert set(ORDER) - optional <= set(FILES)


def test_importing_the_core_loads_neither_nni_nor_lightning() -> None:
    program = "import sys, nni_cafenet; print({'nni', 'pytorch_lightning', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchThing'"):
        _ = nni_cafenet.NoSuchThing
