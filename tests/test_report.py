"""The report: complete, half-finished and empty fields; the comparison with a truth."""

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from survey.io.files import write_parquet
from survey.io.store import Field, FieldError
from survey.report import write_report
from survey.report.data import load
from survey.report.methods import Entry, matched
from survey.report.residuals import STAR, accumulate
from survey.stages.methods import MethodError
from tests.report_fields import EPOCHS, empty_field, frames_table, full_field, write_images, write_products


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    field = full_field(tmp_path_factory.mktemp("report") / "bulge")
    path = write_report(field.path)
    return field, path.read_text()


class Outline(HTMLParser):
    """Identifiers, links, sources and whether the tags close in their order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.sources, self.open, self.images = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("href", "xlink:href"):
            if name in given:
                (self.links if tag != "image" else self.sources).append(given[name])
        if "src" in given:
            self.sources.append(given["src"])
        if tag in ("img", "svg"):
            self.images.append(given.get("alt") or given.get("aria-label"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(text):
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_page_is_well_formed_and_asks_for_nothing_outside(full):
    parsed = outline(full[1])
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(source.startswith("data:image/png;base64,") for source in parsed.sources)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert all(link.startswith("#") for link in parsed.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", full[1])


def test_pictures_have_alternative_texts(full):
    images = outline(full[1]).images
    assert len(images) > 15
    assert all(images)


def picture(text, words):
    """The SVG with such an alternative text."""
    found = re.search(rf'<svg [^>]*aria-label="{words}.*?</svg>', text, re.S)
    assert found, f"no picture of {words!r}"
    return found[0]


@pytest.mark.parametrize(
    "words",
    [
        "Native reference image of the whole field",
        "Window of the native reference",
        "The same window of the oversampled reference",
        "Frame frame_",
        "Difference of frame frame_",
        "Difference over error of frame frame_",
        "Map of the search",
    ],
)
def test_every_map_is_there_with_its_pixels(full, words):
    pixels = re.search(r"data:image/png;base64,([A-Za-z0-9+/=]+)", picture(full[1], words))
    assert pixels
    assert len(pixels[1]) > 300


@pytest.mark.parametrize(
    "words",
    ["Histogram of difference over error", "Width and mean of difference over error", "Sub-pixel phases"],
)
def test_every_diagram_is_there_with_its_curves(full, words):
    assert picture(full[1], words).count("<path") > 5


def test_an_event_has_its_four_cutouts_and_its_light_curve(full):
    card = full[1].split('id="event-1"')[1].split("</article>")[0]
    names = re.findall(r'<img src="data:image/png[^>]*alt="([^,]*),', card)
    assert names == ["frame", "reference", "difference", "largest |S/N|"]
    assert picture(card, "Light curve of event-0001").count("<path") > 5


def test_timings_of_a_run_are_drawn_beside_their_numbers(full):
    part = full[1].split('<section id="runs"')[1]
    row = part.split("oversampled</td>")[1].split("</tr>")[0]
    assert '<span class="bar" style="width:100.0%">' in row
    for seconds in ("0.40", "8.00", "0.20"):
        assert seconds in row
    assert "1 min 5 s of wall time" in part


def test_figures_take_the_colours_of_the_page(full):
    assert "#0102" not in full[1]
    assert "DejaVu" not in full[1]
    assert "prefers-color-scheme:dark" in full[1]


@pytest.mark.parametrize("anchor", ["pictures", "events", "truth", "target", "noise", "frames", "runs"])
def test_full_report_has_every_section(full, anchor):
    assert f'<section id="{anchor}"' in full[1]


def test_methods_stand_side_by_side_where_there_are_two(full, tmp_path):
    assert '<section id="methods"' not in full[1]
    copy = tmp_path / "two"
    shutil.copytree(full[0].path, copy)
    field = Field.open(copy)
    for name in ("difference", "events", "lightcurves"):
        folder = copy / "cube.zarr" / name if name == "difference" else copy / name
        for old in folder.glob("oversampled*"):
            other = old.with_name(old.name.replace("oversampled", "sfft"))
            shutil.copytree(old, other) if old.is_dir() else shutil.copy(old, other)
    events = pq.read_table(field.events_path("sfft")).to_pylist()
    write_parquet(field.events_path("sfft"), pa.Table.from_pylist(events[:2]))
    text = write_report(copy).read_text()
    outline(text)
    part = text[text.index('<section id="methods"') :]
    assert "<b>oversampled</b>" in part
    assert "<b>sfft</b>" in part
    entries = [Entry(load(copy, name), None) for name in ("oversampled", "sfft")]
    shared = matched(entries)
    assert [sum(e is not None for e in row) for row in shared] == [2, 2, 1]
    assert shared[0][0]["object_id"] == shared[0][1]["object_id"]


def test_header_says_what_the_field_is(full):
    for words in ("<h1>bulge</h1>", "F146", "17:52:00", "1 flagged", "last run failed in 1 min 5 s"):
        assert words in full[1]


def test_bits_are_said_in_words(full):
    for words in ("trailed, hazy", "edge, single epoch", "moving, unlike PSF"):
        assert words in full[1]


def test_only_the_asked_number_of_events_has_pictures(full):
    assert 'id="event-2"' in full[1]
    assert 'id="event-3"' not in full[1]
    assert "event-0003" in full[1]


def test_failures_and_rejected_frames_are_listed_and_escaped(full):
    for words in ("tile-00003", "ValueError: a &lt; b", "bad.fits", "truncated"):
        assert words in full[1]


def test_residuals_are_a_unit_gaussian(full):
    found = accumulate(load(full[0].path, "oversampled"))
    assert abs(found.of().std - 1.0) < 0.02
    assert abs(found.of().mean) < 0.02
    assert found.pixels == 64 * 64
    assert found.histogram.sum() == found.of().n
    assert np.nanmax(np.abs(found.frame_std - 1)) < 0.06
    assert 0.04 < found.of(STAR).n / found.of().n < 0.06


def test_large_cube_is_sampled_by_a_fixed_draw(full):
    data = load(full[0].path, "oversampled")
    one, two = (accumulate(data, budget=EPOCHS * 32 * 32 * 2) for _ in range(2))
    assert one.pixels == 2 * 32 * 32
    assert one.of() == two.of()


def test_output_goes_where_it_is_asked(tmp_path):
    path = write_report(empty_field(tmp_path / "field").path, output=tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_report_of_nothing_says_what_is_missing(tmp_path):
    field = empty_field(tmp_path / "empty", wcs=None)
    text = write_report(field.path).read_text()
    outline(text)
    for words in (
        "No frames have been ingested",
        "No reference yet",
        "not been searched",
        "No run",
        "no WCS",
    ):
        assert words in text


def test_report_of_ingested_frames_shows_a_frame(tmp_path):
    rng = np.random.default_rng(2)
    field = empty_field(tmp_path / "half")
    field.write_table("frames", frames_table(rng))
    write_images(field, rng)
    text = write_report(field.path).read_text()
    outline(text)
    assert "No difference of this frame yet" in text
    assert 'aria-label="Frame frame_00012"' in text


def test_report_of_prepared_but_unwritten_groups(tmp_path):
    rng = np.random.default_rng(3)
    field = empty_field(tmp_path / "prepared")
    field.write_table("frames", frames_table(rng))
    write_images(field, rng)
    sizes = {"time": EPOCHS, "y": 64, "x": 64, "ky": 5, "kx": 5}
    for group in ("difference/oversampled", "reference", "search/oversampled"):
        field.require_group(group, sizes)
    text = write_report(field.path).read_text()
    for words in (
        "No reference yet",
        "No difference of this frame",
        "not been searched",
        "No differences yet",
    ):
        assert words in text


def test_report_of_a_field_without_events(tmp_path):
    rng = np.random.default_rng(4)
    field = empty_field(tmp_path / "quiet")
    field.write_table("frames", frames_table(rng))
    write_images(field, rng)
    write_products(field, rng)
    empty = pa.table({"object_id": pa.array([], pa.string()), "snr": pa.array([], pa.float64())})
    write_parquet(field.events_path("oversampled"), empty)
    text = write_report(field.path).read_text()
    assert "found no event above its threshold" in text
    assert "No event in it" in text


def test_a_method_without_anything_replaces_no_page(tmp_path):
    field = empty_field(tmp_path / "field")
    with pytest.raises(MethodError, match="unknown method 'foo'"):
        write_report(field.path, "foo")
    field.require_group("difference/oversampled", {})
    with pytest.raises(FieldError, match=r"nothing of method 'cpm' yet, only of oversampled"):
        write_report(field.path, "cpm")
    assert not (field.path / "report.html").exists()


def test_no_field_is_an_error(tmp_path):
    with pytest.raises(FieldError, match="not a field"):
        write_report(tmp_path)
