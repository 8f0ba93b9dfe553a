"""Tables of events, light curves and targets, out and in again."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io.votable import parse_single_table
from astropy.table import Table

from survey.io.catalogs import (
    CatalogError,
    as_table,
    dump_table,
    explode,
    read_table,
    read_target_table,
    to_arrow,
    write_catalog,
    write_table,
)

EVENTS = [
    {
        "event_id": "e1",
        "ra": 268.25,
        "dec": -29.5,
        "time": 61437.25,
        "amplitude": 12.5,
        "n": 7,
        "ok": False,
    },
    {
        "event_id": "e2",
        "ra": 268.5,
        "dec": -29.25,
        "time": 61440.5,
        "amplitude": -3.0,
        "n": 2,
        "ok": True,
    },
]
CURVES = {
    "object_id": ["a", "b"],
    "reference_flux": [100.0, None],
    "time": [[1.0, 2.0, 3.0], [1.0, 2.0]],
    "flux": [[0.5, 0.25, np.nan], [1.0, 2.0]],
    "flags": [[0, 1, 2], [0, 0]],
}


@pytest.mark.parametrize("ending", ["parquet", "csv", "ecsv", "vot"])
def test_events_come_back_as_they_were(tmp_path, ending):
    path = write_table(EVENTS, tmp_path / f"events.{ending}", flux_unit="electron / s")
    back = read_table(path)
    assert back.colnames == list(EVENTS[0])
    for i, event in enumerate(EVENTS):
        assert {name: str(back[name][i]) for name in back.colnames} == {k: str(v) for k, v in event.items()}
    if ending != "csv":
        assert back["ra"].unit == "deg"
        assert back["amplitude"].unit == "electron / s"
        assert back["ra"].description == "right ascension, ICRS"


def test_parquet_has_plain_columns_that_hats_can_import(tmp_path):
    arrow = pq.read_table(write_table(EVENTS, tmp_path / "events.parquet"))
    assert (arrow.schema.field("ra").type, arrow.schema.field("dec").type) == (pa.float64(), pa.float64())
    assert arrow.schema.field("event_id").type == pa.string()
    assert arrow.schema.field("ra").metadata[b"unit"] == b"deg"


def test_light_curves_stay_nested_in_parquet_and_are_unrolled_elsewhere(tmp_path):
    nested = pq.read_table(write_table(CURVES, tmp_path / "curves.parquet"))
    assert nested.schema.field("flux").type == pa.list_(pa.float64())
    assert len(nested) == 2
    long = read_table(write_table(nested, tmp_path / "curves.ecsv"))
    assert long["object_id"].tolist() == ["a", "a", "a", "b", "b"]
    assert long["flags"].tolist() == [0, 1, 2, 0, 0]
    assert long["time"].unit == "d"
    back = read_table(tmp_path / "curves.parquet")
    np.testing.assert_array_equal(back["flux"][0], CURVES["flux"][0])


def test_unrolling_needs_equal_lengths():
    with pytest.raises(CatalogError, match=r"row 1: columns time, flux have \[1, 2\] epochs"):
        explode({"time": [[1.0], [1.0]], "flux": [[1.0], [1.0, 2.0]]})


@pytest.mark.parametrize("format", ["table", "csv", "ecsv", "votable", "parquet"])
def test_tables_without_rows_are_tables(format):
    empty = pa.table({"event_id": pa.array([], pa.string()), "ra": pa.array([], pa.float64())})
    assert dump_table(empty, format)


def test_plain_text_and_votable_are_readable():
    text = dump_table(EVENTS, "table").decode().splitlines()
    assert text[0].split()[:3] == ["event_id", "ra", "dec"]
    assert text[1].split() == ["deg", "deg", "d"]
    votable = parse_single_table(io.BytesIO(dump_table(EVENTS, "votable")))
    assert votable.get_field_by_id("ra").unit == "deg"


def test_missing_values(tmp_path):
    rows = [{"name": "a", "magnitude": 17.5, "n": 3}, {"name": None, "magnitude": None, "n": None}]
    table = as_table(rows)
    assert np.isnan(table["magnitude"][1])
    assert table["n"].mask.tolist() == [False, True]
    arrow = to_arrow(rows)
    assert arrow.column("name").to_pylist() == ["a", None]
    assert arrow.column("n").to_pylist() == [3, None]


def test_metadata_travels(tmp_path):
    for ending in ("parquet", "ecsv"):
        path = write_table(EVENTS, tmp_path / f"m.{ending}", meta={"time_scale": "utc"})
        assert read_table(path).meta["time_scale"] == "utc"


def test_a_catalog_goes_to_a_file_or_the_terminal(tmp_path, capsys):
    write_catalog(EVENTS, "csv")
    assert capsys.readouterr().out.startswith("event_id,ra,dec")
    write_catalog(EVENTS, "votable", tmp_path / "events.txt")
    assert parse_single_table(tmp_path / "events.txt").nrows == 2
    assert capsys.readouterr().out == ""
    with pytest.raises(CatalogError, match=r"name a file with -o"):
        write_catalog(EVENTS, "parquet")


def test_unknown_formats_name_the_known(tmp_path):
    with pytest.raises(CatalogError, match=r"\.dat ending is no table format; known: \.parquet"):
        write_table(EVENTS, tmp_path / "events.dat")
    with pytest.raises(CatalogError, match="no table format 'xls'; known: table, parquet"):
        dump_table(EVENTS, "xls")


def test_tables_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(CatalogError, match=r"broken\.parquet: cannot be read as parquet"):
        read_table(tmp_path / "broken.parquet")
    with pytest.raises(CatalogError, match="no such file"):
        read_table(tmp_path / "missing.csv")


# --- targets


def targets(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    return read_target_table(tmp_path / "t.csv")


def test_targets_in_degrees_pixels_and_sexagesimal(tmp_path):
    assert targets(tmp_path, "name,RA,Dec,note\nHAT-P-32,31.0427,46.6878,star\n") == [
        {"note": "star", "name": "HAT-P-32", "ra": 31.0427, "dec": 46.6878}
    ]
    assert targets(tmp_path, "x,y\n10.5,20\n") == [{"x": 10.5, "y": 20.0}]
    (row,) = targets(tmp_path, "id,raj2000,dej2000\n1,02:04:10.25,+46:41:16.1\n")
    assert row["ra"] == pytest.approx(31.0427, abs=1e-4)
    assert row["dec"] == pytest.approx(46.6878, abs=1e-4)
    assert row["name"] == "1"


def test_a_target_may_have_one_of_two_positions(tmp_path):
    rows = targets(tmp_path, "name,x,y,ra,dec\na,1,2,,\nb,,,31.0,46.0\n")
    assert [sorted(row) for row in rows] == [["name", "x", "y"], ["dec", "name", "ra"]]


@pytest.mark.parametrize("ending", ["ecsv", "vot", "parquet"])
def test_targets_of_other_formats_with_units(tmp_path, ending):
    table = Table({"ra": [2.0], "dec": [-30.0]}, units={"ra": "hourangle", "dec": "deg"})
    if ending != "vot":  # VOTable has no hour angle
        write_table(table, tmp_path / f"t.{ending}")
        assert read_target_table(tmp_path / f"t.{ending}")[0]["ra"] == pytest.approx(30.0)
    table["ra"] = [30.0]
    table["ra"].unit = "deg"
    write_table(table, tmp_path / f"t.{ending}")
    assert read_target_table(tmp_path / f"t.{ending}")[0] == {"ra": 30.0, "dec": -30.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,lon,lat\na,1,2\n", r"t\.csv: no columns ra, dec .* it has name, lon, lat"),
        ("ra,dec\n", "the table has no rows"),
        ("ra,dec\n31.0,\n", r"row 1 has no position \(ra, dec\)"),
        ("ra,dec\n31.0,46\n31,north\n", "row 2, column dec: .*north.* is no angle"),
        ("x,y\n1,two\n", "row 1, column y: .*two.* is no pixel coordinate"),
        ("ra,dec\n31.0,460\n", "row 1: ra 31.0, dec 460.0 is no position in degrees"),
    ],
)
def test_targets_that_have_no_position(tmp_path, text, message):
    with pytest.raises(CatalogError, match=message):
        targets(tmp_path, text)
