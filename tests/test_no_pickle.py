"""Nothing that is read from a field may run code: no pickle, and nothing that is one in disguise."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "survey"
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_pickle_is_read(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLERS
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert called not in ("eval", "exec", "read_pickle"), called
            allowed = [k.value for k in node.keywords if k.arg == "allow_pickle"]
            assert all(isinstance(v, ast.Constant) and v.value is False for v in allowed)
