import pytest

from survey.config import Config, ConfigError, load_config, make_config, settings_hash
from survey.io.frames import find_files


def test_unknown_key_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown setting 'reference\.clp'; did you mean 'clip'"):
        make_config({"reference": {"clp": 3}})


def test_unknown_table_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'reference'"):
        make_config({"refrence": {}})


def test_bad_value_names_key_and_value():
    with pytest.raises(ConfigError, match=r"reference\.clip = -3: .*greater than 0"):
        make_config({"reference": {"clip": -3}})


def test_paths_are_relative_to_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[input]\nframes = ["night/*.fits"]\n[photometry]\ntargets = "t.csv"\n')
    config = load_config(file)
    assert config.input.frames == [str(tmp_path / "night/*.fits")]
    assert config.photometry.targets == str(tmp_path / "t.csv")


def test_a_folder_is_no_pattern(tmp_path):
    folder = tmp_path / "night[1]"
    folder.mkdir()
    for name in ("a.fits", "b.fits", "c[1].fits"):
        (folder / name).touch()
    (folder / "run.toml").write_text('[input]\nframes = ["?.fits", "c[1].fits"]\n')
    found = find_files(load_config(folder / "run.toml").input.frames)
    assert found == [str(folder / name) for name in ("a.fits", "b.fits", "c[1].fits")]


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[input\n")
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes("[input]\nband = 'é'\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.toml: not a TOML file.*utf-8"):
        load_config(tmp_path / "latin.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.toml: cannot be read"):
        load_config(tmp_path / "folder.toml")


def test_stored_settings_make_the_same_config():
    config = Config(detect={"threshold": 7.5})
    again = make_config(config.model_dump(mode="json"))
    assert again == config
    assert settings_hash(again) == settings_hash(config) != settings_hash(Config())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"photometry": {"size": 8}}, "8 pixels have no middle; give an odd number"),
        ({"psf": {"size": 12}}, "12 pixels have no middle; give an odd number"),
    ],
)
def test_stamps_have_a_middle(table, said):
    with pytest.raises(ValueError, match=said):
        make_config(table)
