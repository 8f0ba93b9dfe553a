"""The notebooks run from the first cell to the last, by this Python, and are stored without outputs."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient: pip install '.[dev]'")
jupyter_client = pytest.importorskip("jupyter_client", reason="notebooks need Jupyter's client")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


class ThisPython(jupyter_client.kernelspec.KernelSpecManager):
    """Knows one kernel: the Python that runs the tests, whatever kernels the machine has."""

    def get_kernel_spec(self, kernel_name):
        return jupyter_client.kernelspec.KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name=kernel_name,
            language="python",
        )


class ThisKernel(jupyter_client.AsyncKernelManager):
    """Starts that kernel."""

    def _kernel_spec_manager_default(self):
        return ThisPython(parent=self)


def execute(path, folder, monkeypatch, only=None):
    """Run a notebook, or only these cells of it, in a folder of its own and return it with its outputs."""
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    # Fields are made in the system's temporary folder: here it is the test's.
    monkeypatch.setenv("TMPDIR", str(folder))
    notebook = nbformat.read(path, as_version=4)
    if only is not None:
        notebook.cells = [cell for cell in notebook.cells if cell.source in only]
    notebook.cells.insert(0, nbformat.v4.new_code_cell("import sys\n\nsys.executable"))
    client = nbclient.NotebookClient(
        notebook,
        kernel_manager_class=ThisKernel,
        timeout=500,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    assert notebook.cells[0].outputs[0].data["text/plain"] == repr(sys.executable)
    return notebook


def outputs(notebook, *kinds):
    return [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type in kinds
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


# The first run on a machine compiles the kernels, in two processes; later ones take half a minute.
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning:jupyter_client")
def test_quickstart_runs(tmp_path, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "quickstart")
    notebook = execute(path, tmp_path, monkeypatch)
    shown = "\n".join(
        str(output.data.get("text/plain", "")) for output in outputs(notebook, "execute_result")
    )
    assert "72 frames taken, 0 left out; run done" in shown
    # The three simulated events are found, each within a fifth of a pixel (of 110 mas) of the truth.
    rows = [line.split() for line in shown.splitlines() if re.match(r"\s*E\d+ +event ", line)]
    events = [(row[-2], float(row[-1])) for row in rows]
    assert len(events) == 3
    assert all(kind == "microlensing" and distance < 22 for kind, distance in events)
    mean, scatter = map(float, re.search(r"mean ([-+.\d]+), scatter ([.\d]+)", shown).groups())
    assert abs(mean) < 0.01
    assert scatter == pytest.approx(1, abs=0.03)
    assert re.search(r"[1-9]\d* of 2304 pixels of this tile were fitted again", shown)
    assert sum("image/png" in output.data for output in outputs(notebook, "display_data")) == 2
    complaints = "".join(output.text for output in outputs(notebook, "stream") if output.name == "stderr")
    assert "Warning:" not in complaints
    assert not list(tmp_path.glob("survey-*")), "the notebook leaves its field behind"


@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning:jupyter_client")
def test_nn2_runs(tmp_path, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "nn2")
    notebook = execute(path, tmp_path, monkeypatch)
    shown = "\n".join(
        str(output.data.get("text/plain", "")) for output in outputs(notebook, "execute_result")
    )
    assert "below 16 of 16 templates; ratios within 0.026 of the paper's" in shown
    widths = re.search(r"pull width ([.\d]+) by the paper's recipe, ([.\d]+) with", shown).groups()
    assert abs(float(widths[1]) - 1) < abs(float(widths[0]) - 1) < 0.1
    assert sum("image/png" in output.data for output in outputs(notebook, "display_data")) == 2
    assert not [o for o in outputs(notebook, "stream") if o.name == "stderr"]


def numbers(line):
    return [float(x) for x in re.findall(r"\d+\.\d+", line)]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning:jupyter_client")
def test_cpm_runs(tmp_path, monkeypatch, real_data):
    """The paper's experiments: mock observations, limits, two campaigns of K2."""
    monkeypatch.setenv("SURVEY_TEST_DATA", str(real_data.resolve()))
    path = next(path for path in NOTEBOOKS if path.stem == "cpm")
    notebook = execute(path, tmp_path, monkeypatch)
    tables = "".join(output.text for output in outputs(notebook, "stream") if output.name == "stdout")
    mocks, kept = (
        {kind: numbers(line) for kind, line in re.findall(r"^ *(space|ground) (.*)$", part, re.M)}
        for part in tables.split("in sample")
    )
    for kind, median, high in (("space", 1.30, 3.6), ("ground", 1.85, 9.6)):
        _, got, percentile, pull = mocks[kind]
        assert 1 <= got <= median
        assert got < percentile <= high
        assert pull == pytest.approx(1, abs=0.1)
        held, seen = kept[kind]
        assert 0.97 <= held < 1.03
        assert seen < held
    shown = "\n".join(
        str(output.data.get("text/plain", "")) for output in outputs(notebook, "execute_result")
    )
    found = {
        name: numbers(line) for name, line in re.findall(r"(FWHM \d\.\d|rotation|PSF): ([\d., ]+)", shown)
    }
    # pointing 0.5, 1, 2, 5, 8 px: what a width allows grows with it
    assert found["FWHM 2.5"][2] <= 2.3 < 100 < found["FWHM 2.5"][4]
    assert found["FWHM 4.0"][2] <= 1.6 < 20 < found["FWHM 4.0"][4] < found["FWHM 2.5"][4]
    assert 8 < found["FWHM 6.0"][4] <= 20 < found["FWHM 4.0"][4]
    assert found["rotation"] == sorted(found["rotation"])
    assert 3 < found["rotation"][2] <= 6.5
    assert 6 < found["PSF"][1] <= 12 < 30 < found["PSF"][2] <= 70
    scatter = [float(x) for x in re.findall(r"scatter ([.\d]+) FLUX_ERR", shown)]
    assert len(scatter) == 3
    assert scatter[0] <= 1.46
    assert max(scatter[1:]) <= 2.1
    assert all(int(times) > 10 for times in re.findall(r"\) (\d+)x", shown))
    assert sum("image/png" in output.data for output in outputs(notebook, "display_data")) == 4
    assert not [o for o in outputs(notebook, "stream") if o.name == "stderr"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning:jupyter_client")
def test_cpm_says_where_data_are_missing(tmp_path, monkeypatch):
    """Its cells of K2 alone, in a folder without any: they say so and go on."""
    monkeypatch.setenv("SURVEY_TEST_DATA", str(tmp_path))
    path = next(path for path in NOTEBOOKS if path.stem == "cpm")
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    first = next(i for i, source in enumerate(code) if source.startswith("def find(pattern)"))
    notebook = execute(path, tmp_path, monkeypatch, only=[code[0], *code[first:]])
    shown = "\n".join(
        str(output.data.get("text/plain", "")) for output in outputs(notebook, "execute_result")
    )
    assert "no K2 data here: set SURVEY_TEST_DATA to the folder that holds k2/" in shown
