import subprocess
import sys

import pytest

import survey


def test_public_names_are_there_in_any_order_of_import():
    import survey.run.api

    assert survey.create_field is survey.run.api.create_field
    assert callable(survey.run)
    for name in survey.__all__:
        assert getattr(survey, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = survey.nonsense
    assert set(survey.__all__) <= set(dir(survey))


def test_run_is_the_function(tmp_path):
    from survey.io.store import FieldError

    with pytest.raises(FieldError, match="not a field"):
        survey.run(tmp_path / "nothing", client="synchronous")


def test_help_does_not_load_the_cluster():
    code = (
        "import sys; from survey.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'distributed', 'xarray', 'zarr', 'matplotlib', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "survey demo" in done.stdout
