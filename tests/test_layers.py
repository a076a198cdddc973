"""The layers of docs/architecture.md, read from the imports.

Each rule is a function from sources to complaints, so that it is shown to bite before it is believed.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "dnpipefs"

# Bottom first. A module imports its own layer and those below; siblings in a layer may use one another
# as long as no cycle comes of it. A new name has to be given its place here.
LAYERS: list[set[str]] = [
    {"errors", "metrics", "parallel"},
    {"core"},
    {"etcd"},
    {"log", "namespace", "groups", "session"},
    {"cluster"},
    # The services as files, as functions; etcd examined; what is stored checked; "" is dnpipefs itself.
    {"vfs", "api", "consumer", "writer", "doctor", "fsck", "status", "overview", "exposition", ""},
    {"fuse"},
    {"mount"},
    {"cli", "bench", "top", "__main__"},
]
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}

ONLY_IN = {"pyfuse3": "fuse", "errno": "fuse", "grpc": "etcd", "dns": "etcd", "urwid": "top"}
NOT_IN_CORE = {"trio", "time", "random", "secrets", "os", "socket", "threading", "subprocess", "asyncio"}
MEANINGLESS_NAMES = {"utils", "util", "common", "helpers", "misc"}
LONGEST_MODULE_LINES = 600

Sources = Mapping[str, str]
"""Source text by dotted module name."""


def unit_of(module: str) -> str:
    """Return the layer's member that a module of the package belongs to: `log` for `dnpipefs.log.reader`."""
    return module.split(".")[1] if "." in module else ""


def imports(sources: Sources, module: str) -> Iterator[str]:
    """Yield what `module` imports, as dotted names; submodules where the name imported is one."""
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively: write the whole name"
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in sources else node.module


def upward_imports(sources: Sources) -> list[str]:
    complaints = []
    for module in sources:
        unit = unit_of(module)
        if unit not in RANK:
            complaints.append(f"{module}: which layer is {unit!r} in? Say it in LAYERS")
            continue
        complaints += [
            f"{module} imports {imported}, which is above it"
            for imported in imports(sources, module)
            if imported.split(".")[0] == PACKAGE and RANK.get(unit_of(imported), -1) > RANK[unit]
        ]
    return complaints


def misplaced_imports(sources: Sources) -> list[str]:
    complaints = []
    for module in sources:
        unit = unit_of(module)
        for imported in imports(sources, module):
            top = imported.split(".")[0]
            if ONLY_IN.get(top, unit) != unit:
                complaints.append(f"{module} imports {top}, which only {ONLY_IN[top]} may know")
            if unit == "core" and top in NOT_IN_CORE:
                complaints.append(f"{module} imports {top}: the core has no I/O, clock or randomness")
    return complaints


def import_cycles(sources: Sources) -> list[str]:
    """Complain of each cycle once, along the first path that closes it."""
    graph = {
        module: sorted({name for name in imports(sources, module) if name in sources}) for module in sources
    }
    complaints: list[str] = []
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            complaints.append(" → ".join([*path[path.index(module) :], module]))
        elif module not in finished:
            for imported in graph[module]:
                visit(imported, [*path, module])
            finished.add(module)

    for module in graph:
        visit(module, [])
    return complaints


def bad_names(sources: Sources) -> list[str]:
    return [module for module in sources if MEANINGLESS_NAMES & set(re.split(r"[._]", module))]


def long_modules(sources: Sources) -> list[str]:
    lengths = {module: source.count("\n") for module, source in sources.items()}
    return [f"{module}: {lines} lines" for module, lines in lengths.items() if lines > LONGEST_MODULE_LINES]


Rule = Callable[[Sources], list[str]]
IMPORT_RULES: list[Rule] = [upward_imports, misplaced_imports, import_cycles]
FORM_RULES: list[Rule] = [bad_names, long_modules]


def sources_below(directory: Path) -> dict[str, str]:
    sources = {}
    for path in directory.rglob("*.py"):
        parts = path.relative_to(directory.parent).with_suffix("").parts
        if "proto" not in parts:  # generated
            sources[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return sources


@pytest.mark.parametrize("rule", [*IMPORT_RULES, *FORM_RULES])
def test_the_package_keeps(rule: Rule, repository: Path) -> None:
    sources = sources_below(repository / PACKAGE)
    assert "dnpipefs.errors" in sources
    assert rule(sources) == []


@pytest.mark.parametrize("rule", FORM_RULES)
def test_tests_and_scripts_keep(rule: Rule, repository: Path) -> None:
    assert rule(sources_below(repository / "tests") | sources_below(repository / "scripts")) == []


@pytest.mark.parametrize(
    ("rule", "sources"),
    [
        (upward_imports, {"dnpipefs.core.view": "import dnpipefs.log.reader"}),
        (upward_imports, {"dnpipefs.etcd.client": "def f():\n    from dnpipefs.vfs import handle"}),
        (upward_imports, {"dnpipefs.log.reader": "from dnpipefs import connect"}),
        (upward_imports, {"dnpipefs.unheard_of": ""}),
        (misplaced_imports, {"dnpipefs.vfs.handle": "import errno"}),
        (misplaced_imports, {"dnpipefs.mount": "from pyfuse3 import FUSEError"}),
        (misplaced_imports, {"dnpipefs.log.reader": "import grpc.aio"}),
        (misplaced_imports, {"dnpipefs.core.view": "from time import monotonic"}),
        (import_cycles, {"dnpipefs.a": "import dnpipefs.b", "dnpipefs.b": "from dnpipefs import a"}),
        (bad_names, {"dnpipefs.log.utils": ""}),
        (bad_names, {"dnpipefs.etcd_common": ""}),
        (long_modules, {"dnpipefs.log": "\n" * (LONGEST_MODULE_LINES + 1)}),
    ],
)
def test_the_rule_bites(rule: Rule, sources: Sources) -> None:
    assert len(rule(sources)) == 1


@pytest.mark.parametrize("rule", [*IMPORT_RULES, *FORM_RULES])
def test_the_rule_lets_good_code_be(rule: Rule) -> None:
    assert (
        rule(
            {
                "dnpipefs.errors": "",
                "dnpipefs.core.view": "from dnpipefs import errors\nimport json",
                "dnpipefs.etcd.client": "import grpc\nimport trio\nfrom dnpipefs.core import view",
                "dnpipefs.fuse.adapter": "import errno, pyfuse3\nfrom dnpipefs.etcd import client",
            }
        )
        == []
    )
