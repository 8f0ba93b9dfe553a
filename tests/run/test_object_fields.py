"""Everything that is done to a field, on one that lives in a bucket."""

import pytest

from survey.run.api import run
from tests.objects.conftest import bucket  # noqa: F401
from tests.run.conftest import assert_same_bits, small_config


@pytest.fixture(scope="module")
def there(bucket, finished):  # noqa: F811
    """The finished field once more, in the bucket; and the requests that took."""
    url, start = f"{bucket.url}/finished", len(bucket.requests())
    summary = run(url, small_config(), frames=[finished.frames], client="synchronous")
    assert summary.ok, summary.failures
    return url, bucket.requests()[start:]


def test_a_run_in_a_bucket_gives_the_same_bits(there, finished):
    assert_same_bits(finished.path, there[0])
