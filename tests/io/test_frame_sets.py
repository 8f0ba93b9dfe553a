"""Which files are found, and which of their frames make a field."""

import pickle
import shutil

import numpy as np
import pytest
from frame_files import SHAPE, sky_image, tan_wcs, write

from survey.config import InputSettings
from survey.io.frames import (
    FrameError,
    FrameSetError,
    combine_scans,
    find_files,
    scan,
    scan_file,
)


def test_nothing_found_names_the_nearest(tmp_path):
    write(tmp_path / "night1.fits")
    with pytest.raises(FrameError, match=r"did you mean 'night1\.fits'"):
        find_files([tmp_path / "nigth1.fits"])
    with pytest.raises(FrameError, match="no directory"):
        find_files([tmp_path / "away" / "*.fits"])
    with pytest.raises(FrameError, match="no frames were named"):
        find_files([])


def test_files_are_found_once_and_sorted(tmp_path):
    for name in ("b.fits", "a.fits.gz", "c.fit", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = find_files([tmp_path, tmp_path / "b.fits", f"{tmp_path}/*.fit*"])
    assert [path.rsplit("/", 1)[1] for path in found] == ["a.fits.gz", "b.fits", "c.fit"]


def test_scan_lists_what_is_left_out(tmp_path):
    for k in range(4):
        write(tmp_path / f"f{k}.fits", sky_image(k), MJD_OBS=60000.5 + (3 - k) * 0.01)
    (tmp_path / "f4.fits").write_bytes((tmp_path / "f1.fits").read_bytes())
    write(tmp_path / "f5.fits", sky_image(9), MJD_OBS=60000.5)
    write(tmp_path / "f6.fits", sky_image(9, shape=(40, 49)), MJD_OBS=60001.0)
    (tmp_path / "f7.fits").write_bytes(b"junk")
    found = scan(find_files([tmp_path]))
    assert [header.frame_id for header in found.headers] == ["f3", "f2", "f1", "f0"]
    kinds = {rejected.source.path.rsplit("/", 1)[1]: rejected for rejected in found.rejected}
    assert {name: r.kind for name, r in kinds.items()} == {
        "f4.fits": "duplicate",
        "f5.fits": "duplicate",
        "f6.fits": "shape",
        "f7.fits": "bad",
    }
    assert kinds["f4.fits"].reason == "f4.fits: duplicate of f1.fits, same content"
    assert "duplicate of f3.fits, same time" in kinds["f5.fits"].reason
    assert "shape (40, 49) px, but" in kinds["f6.fits"].reason
    assert "(40, 50)" in kinds["f6.fits"].reason
    assert any("no error extension and no gain" in text for text in found.warnings)
    by_content = scan(find_files([tmp_path]), InputSettings(duplicates="content"))
    assert len(by_content.headers) == 5


def test_two_bands_are_refused_and_one_can_be_chosen(tmp_path):
    write(tmp_path / "a.fits", FILTER="W146")
    write(tmp_path / "b.fits", sky_image(2), FILTER="Z087", MJD_OBS=60001.0)
    files = find_files([tmp_path])
    with pytest.raises(
        FrameSetError, match=r"'W146' \(1 frames\), 'Z087' \(1 frames\).*\[input\] band = 'W146'"
    ):
        scan(files)
    found = scan(files, InputSettings(band="Z087"))
    assert [header.band for header in found.headers] == ["Z087"]
    assert [rejected.kind for rejected in found.rejected] == ["filtered"]


def test_frames_of_the_same_name_get_their_directorys(tmp_path):
    for night in (1, 2):
        (tmp_path / f"night{night}").mkdir()
        write(tmp_path / f"night{night}" / "img1.fits", sky_image(night), MJD_OBS=60000.0 + night)
    found = scan(find_files([f"{tmp_path}/*/*.fits"]))
    assert [header.frame_id for header in found.headers] == ["night1/img1", "night2/img1"]


def test_appended_frames_must_fit_those_there(tmp_path):
    write(tmp_path / "a.fits")
    known = scan(find_files([tmp_path])).headers
    write(tmp_path / "b.fits", sky_image(5), MJD_OBS=60002.0)
    write(tmp_path / "c.fits", sky_image(6, shape=(20, 20)), MJD_OBS=60003.0)
    found = scan(find_files([tmp_path]), known=known)
    assert [header.frame_id for header in found.headers] == ["b"]
    assert [rejected.kind for rejected in found.rejected] == ["shape"]
    assert "1 frames are in the field already" in found.warnings
    shutil.copy(tmp_path / "a.fits", tmp_path / "copy.fits")
    (left_out,) = scan([tmp_path / "copy.fits"], known=known).rejected
    assert (left_out.kind, left_out.reason) == ("duplicate", "copy.fits: duplicate of a.fits, same content")
    write(tmp_path / "other.fits", sky_image(7))
    (tmp_path / "other.fits").replace(tmp_path / "a.fits")
    (changed,) = scan([tmp_path / "a.fits"], known=known).rejected
    assert "same time" in changed.reason


def test_the_same_files_by_another_name_are_there_already(tmp_path, monkeypatch):
    write(tmp_path / "a.fits")
    known = scan([tmp_path / "a.fits"]).headers
    monkeypatch.chdir(tmp_path)
    found = scan(["a.fits"], known=known)
    assert (found.headers, found.rejected, found.warnings) == ([], [], ["1 frames are in the field already"])


def test_two_detectors_are_refused_and_one_can_be_chosen(tmp_path):
    write(tmp_path / "a.fits")
    write(tmp_path / "b.fits", sky_image(2), DETECTOR="A2", MJD_OBS=60001.0)
    files = find_files([tmp_path])
    with pytest.raises(
        FrameSetError, match=r"'A1' \(1 frames\), 'A2' \(1 frames\).*\[input\] detector = 'A1'"
    ):
        scan(files)
    with pytest.raises(FrameSetError, match="frames of 2 detectors"):
        scan(files[1:], known=scan(files[:1]).headers)
    assert [h.detector for h in scan(files, InputSettings(detector="A2")).headers] == ["A2"]
    unnamed = InputSettings(keywords={"detector": []})
    assert len(scan(files, unnamed).headers) == 2


def test_scans_travel_between_processes(tmp_path):
    path = write(tmp_path / "a.fits", **dict(tan_wcs().to_header()))
    result = pickle.loads(pickle.dumps(scan_file(path, InputSettings())))
    assert combine_scans([result], InputSettings()).headers == scan([path]).headers
    assert result.headers[0].has_wcs
    error = pickle.loads(pickle.dumps(FrameError("x/y.fits", "broken", "mend it", "bad")))
    assert str(error) == "y.fits: broken; mend it"


def test_a_frame_that_lacks_a_plane_most_have_is_left_out(tmp_path):
    planes = [("ERR", np.ones(SHAPE, np.float32)), ("DQ", np.zeros(SHAPE, np.int16))]
    for k in range(3):
        write(tmp_path / f"f{k}.fits", sky_image(k), extensions=planes, MJD_OBS=60000.5 + k)
    known = scan(find_files([tmp_path])).headers
    write(tmp_path / "f3.fits", sky_image(3), extensions=planes[:1], MJD_OBS=60003.5)
    write(tmp_path / "f4.fits", sky_image(4), MJD_OBS=60004.5)
    files = find_files([tmp_path])
    for found in (scan(files), scan(files[3:], known=known)):
        reasons = dict(sorted((r.source.path.rsplit("/", 1)[1], r.reason) for r in found.rejected))
        assert list(reasons) == ["f3.fits", "f4.fits"]
        assert "f3.fits: no dq extension, but 3 frames have one" in reasons["f3.fits"]
        assert "f4.fits: no error extension, but " in reasons["f4.fits"]
        assert "set [input] error = 'none'" in reasons["f4.fits"]
    assert len(scan(files, InputSettings(error="none", dq="none", gain=1, read_noise=1)).headers) == 5
    write(tmp_path / "f5.fits", sky_image(5), MJD_OBS=60005.5)
    write(tmp_path / "f6.fits", sky_image(6), MJD_OBS=60006.5)
    most = scan(find_files([f"{tmp_path}/f[3-6].fits"]))
    assert [header.frame_id for header in most.headers] == ["f3", "f4", "f5", "f6"]
