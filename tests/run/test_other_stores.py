"""A run in a real S3 server and in emulators of other stores: killed, resumed, looked after."""

import json

import pytest
from click.testing import CliRunner

from survey.cli import main
from survey.io.locations import entries, locate
from survey.run.api import run
from tests.objects.stores import OTHERS, other_store
from tests.run.conftest import assert_same_bits, small_config
from tests.run.test_object_fields import kill_halfway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=OTHERS)
def there(request, tmp_path_factory, finished):
    """The finished field in another kind of store, by a killed run and one that resumed it."""
    with other_store(request.param, tmp_path_factory.mktemp(request.param)) as root:
        url = f"{root}/finished"
        recorded = kill_halfway(url, finished.frames)
        summary = run(url, small_config(), frames=[finished.frames], client="synchronous")
        assert summary.ok, summary.failures
        assert summary.skipped >= len(recorded) > 0
        yield url


def call(*arguments):
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_killed_run_is_resumed_to_the_same_bits(there, finished):
    assert_same_bits(finished.path, there)
    assert run(there, client="synchronous").computed == 0


def test_it_is_looked_after_by_its_url(there, finished):
    assert json.loads(call("status", there, "--json"))["runs"][-1]["state"] == "done"
    assert call("events", there, "--format", "csv") == call("events", str(finished.path), "--format", "csv")
    assert "0 problems" in call("verify", there)
    call("template", there, "--from", "stack", "--name", "own")
    call("template", there, "--from", "stack", "--name", "own", "--frames", "12")
    assert "0 problems" in call("verify", there)
    call("prune", there, "--template", "own", "--delete")
    left = {str(entry.place) for entry in entries(locate(there)) if "/template" in str(entry.place)}
    assert not {place for place in left if "own" in place}
    call("unlock", there)
