"""The page on methods side by side runs, with the night of HAT-P-32 and without it."""

import re

import pytest

from tests.test_notebooks import NOTEBOOKS, execute, outputs


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning:jupyter_client")
@pytest.mark.parametrize(
    "there", [False, pytest.param(True, marks=pytest.mark.real)], ids=["absent", "night"]
)
def test_methods_runs(tmp_path, monkeypatch, request, there):
    """Four methods on a crowded field, and on HAT-P-32 where its frames are there."""
    data = request.getfixturevalue("real_data") if there else tmp_path / "nowhere"
    monkeypatch.setenv("SURVEY_TEST_DATA", str(data))
    path = next(path for path in NOTEBOOKS if path.stem == "methods")
    notebook = execute(path, tmp_path, monkeypatch)
    shown = [str(o.data.get("text/plain", "")) for o in outputs(notebook, "execute_result")]
    tables = [rows(text) for text in shown if "false alarms" in text]
    assert len(tables) == 1 + there
    for method, (faint, bright, found, _, false, _) in tables[0].items():
        assert 0.9 < float(faint) < 1.1
        assert float(bright) < (3 if method == "cpm" else 1.6)
        assert found == "3"
        assert method == "cpm" or false == "0"
    assert any("the rest of this page is left out" in text for text in shown) is not there
    assert sum("image/png" in output.data for output in outputs(notebook, "display_data")) == 1 + there


def rows(text):
    """Of a printed table of methods: chi2 faint, chi2 bright, found, of how many, false alarms, seconds."""
    found = re.findall(
        r"(oversampled|cpm|sfft|zogy) +([.\d]+) +([.\d]+) +(\d+) of (\d+) +(\d+) +([.\d]+)", text
    )
    return {name: values for name, *values in found}
