"""In a bucket as on a file system: templates, the other methods, NN2, export, and frames as they arrive."""

import re
import shutil

import numpy as np
import pytest
from astropy.io import fits
from click.testing import CliRunner

from survey.cli import main
from survey.io.locations import entries, locate, write_atomic
from survey.io.store import Field
from survey.report import write_report
from survey.run.api import run
from survey.run.nn2 import nn2_light_curves, run_nn2
from survey.run.template import make_template
from survey.run.verify import verify
from survey.run.watch import watch
from survey.stages.stack import Choice
from tests.run.conftest import assert_same_bits, small_config

pytestmark = pytest.mark.slow


def copy_to_bucket(path, url):
    """A field of a file system in a bucket: every file, and its small tables as a bucket keeps them."""
    source, target = Field.open(path), Field(locate(url))
    for entry in entries(path):
        write_atomic(target.path / str(entry.place.relative_to(path)), entry.place.read_bytes())
    for name in ("frames", "stars", "registration", "psf"):
        target.write_table(name, source.table(name))


@pytest.fixture(scope="module")
def fields(bucket, finished, tmp_path_factory):
    """The finished field twice: on the file system, and in a bucket."""
    path, url = tmp_path_factory.mktemp("both") / "field", f"{bucket.url}/methods"
    shutil.copytree(finished.path, path)
    write_report(path)
    copy_to_bucket(path, url)
    (locate(url) / "report.html").unlink(missing_ok=True)
    return path, url


def groups_equal(first, second, *groups):
    a, b = Field.open(first), Field.open(second)
    for group in groups:
        names = sorted(a.root[a.live(group)].array_keys())
        assert names
        for name in names:
            x, y = (np.asarray(field.array(group, name)[...]) for field in (a, b))
            assert x.tobytes() == y.tobytes(), f"{group}/{name} differs"


def test_a_template_is_replaced(fields):
    for place in fields:
        for count in (5, 24):
            made = make_template(place, "stack", "own", choice=Choice(count=count), client="synchronous")
        assert len(made.attrs["frames"]) == 24
        assert verify(place).problems == []
    groups_equal(*fields, "template/own")
    for place in fields:
        done = CliRunner().invoke(main, ["prune", str(place), "--template", "own", "--delete"])
        assert done.exit_code == 0, done.output
        assert not Field.open(place).has("template/own")


@pytest.mark.parametrize("method", ["sfft", "cpm", "zogy", "hotpants"])
def test_a_method_writes_the_same_bits(fields, hotpants, method):
    hotpants("works")
    for place in fields:
        config = small_config()
        config.method = method
        config.cpm.grid = "sky"
        config.subtraction.template = "reference"
        summary = run(place, config, client="synchronous")
        assert summary.ok, summary.failures
    groups_equal(*fields, f"difference/{method}", f"search/{method}")
    a, b = (Field.open(place) for place in fields)
    for one, other in (
        (a.events_path(method), b.events_path(method)),
        (a.light_curves_path(method), b.light_curves_path(method)),
    ):
        assert one.read_bytes() == other.read_bytes()


def test_all_pairs_give_the_same_light_curves(fields, tmp_path):
    targets = tmp_path / "stars.csv"
    targets.write_text("name,x,y\na,40,50\n")
    found = []
    for place in fields:
        config = small_config()
        config.photometry.targets = str(targets)
        config.nn2.pairs = 2
        summary = run_nn2(place, config, client="synchronous")
        assert summary.ok, summary.failures
        found.append(nn2_light_curves(place))
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        for name in ("flux", "error", "chi2"):
            assert np.array_equal(one[name], other[name], equal_nan=True), name


def test_exported_files_are_the_same(fields, tmp_path):
    for place, folder in zip(fields, ("file", "bucket"), strict=True):
        done = CliRunner().invoke(main, ["export", str(place), "-o", str(tmp_path / folder)])
        assert done.exit_code == 0, done.output
    files = sorted(file.name for file in (tmp_path / "file").iterdir())
    assert len(files) >= 3
    assert files == sorted(file.name for file in (tmp_path / "bucket").iterdir())
    for name in files:
        one, other = (tmp_path / folder / name for folder in ("file", "bucket"))
        if name.endswith(".fits"):
            # Made at different times.
            difference = fits.FITSDiff(one, other, ignore_keywords=["DATE", "CHECKSUM", "DATASUM"])
            assert difference.identical, difference.report()
        else:
            assert one.read_bytes() == other.read_bytes(), name


def test_the_report_lies_in_the_bucket(fields, tmp_path):
    done = CliRunner().invoke(main, ["report", fields[1]])
    assert done.exit_code == 0, done.output
    page = (locate(fields[1]) / "report.html").read_text()
    # Drawn now: it tells of what the tests before this one have added to both fields.
    local = write_report(fields[0], output=tmp_path / "report.html").read_text()
    assert "E00001" in page
    assert sections(page) == sections(local)
    assert abs(len(page) / len(local) - 1) < 0.05


def sections(page):
    """Every section of a report, with the number of its pictures."""
    found = re.findall(r'<section id="(\w+)"(.*?)</section>', page, re.DOTALL)
    return [(name, len(re.findall("<img|<svg", body))) for name, body in found]


def test_frames_are_worked_on_as_they_come(frames, bucket, finished, tmp_path):
    """Into a field in a bucket, in two batches, as into one on a file system."""
    files = sorted(frames[0].glob("*.fits*"))
    for place in (tmp_path / "field", f"{bucket.url}/watched"):
        night = tmp_path / f"night-{'bucket' if 's3' in str(place) else 'file'}"
        night.mkdir()
        for file in files[:66]:
            shutil.copy(file, night)

        def more(batch, night=night):
            for file in files[66:]:
                if not (night / file.name).exists():
                    shutil.copy(file, night)

        batches = watch(
            [night], place, small_config(), interval=0.1, settle=0.1, first=66, idle=3.0,
            client="synchronous", done=more,
        )  # fmt: skip
        assert [len(batch.latency) for batch in batches] == [66, 6]
        assert all(batch.summary.ok for batch in batches)
    assert_same_bits(tmp_path / "field", f"{bucket.url}/watched")
    for place in (tmp_path / "field", f"{bucket.url}/watched"):
        assert run(place, small_config(), rebuild=True, client="synchronous").ok
    assert_same_bits(tmp_path / "field", f"{bucket.url}/watched")
    assert (locate(f"{bucket.url}/watched") / "runs" / batches[1].summary.run_id / "latency.json").exists()
