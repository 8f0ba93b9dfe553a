"""Imports run downward only, from cli to kernels, which know nobody."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "survey"

# For every room, the rooms of `survey` it may import from.
ALLOWED = {
    "schema": set(),
    "tiles": set(),
    "settings": set(),
    "config": {"settings"},
    "kernels": {"kernels"},
    "io": {"io", "schema", "config", "tiles", "kernels"},
    "simulate": {"simulate", "kernels", "io"},
    "hotpants": {"kernels"},
    "templates": {"templates", "io", "kernels", "schema", "config", "tiles"},
    "stages": {"stages", "io", "kernels", "schema", "config", "tiles", "hotpants"},
    "report": {"report", "stages", "io", "kernels", "schema", "config", "tiles"},
    "run": {"run", "stages", "templates", "io", "kernels", "schema", "config", "tiles"},
    "progress": set(),
    "demo": {"run", "simulate", "report", "io", "config", "progress"},
    "service": {"service", "run", "io"},
    "driver": {"run", "report", "config", "io"},
    "cli": {
        "cli",
        "service",
        "run",
        "simulate",
        "report",
        "io",
        "config",
        "progress",
        "stages",
        "templates",
        "demo",
    },
    "__init__": {"run", "simulate", "config", "io"},
}
HEAVY = {"dask", "distributed", "xarray", "zarr"}


def imports(path: Path):
    """Absolute names of all modules a file imports."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            if module == "survey" or module.endswith(".stages"):
                yield from (f"{module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downward(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "survey" and len(parts) > 1:
            assert parts[1] in ALLOWED[here], f"{path.name} of {here} imports {name}"
        if parts[0] == "distributed":
            assert here == "run", f"{path} imports distributed; only survey.run may"
        if here == "kernels":
            assert parts[0] not in HEAVY, f"{path} imports {name}"
