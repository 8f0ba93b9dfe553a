"""One run's settings, validated. The TOML file mirrors these models, table for table."""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from survey.settings import (
    IMAGES_PER_COEFFICIENT,
    CalibrateSettings,
    ClusterSettings,
    CpmSettings,
    DetectSettings,
    GridSettings,
    InputSettings,
    Keywords,
    Nn2Settings,
    PhotometrySettings,
    PsfSettings,
    ReferenceSettings,
    RegisterSettings,
    ReportSettings,
    Settings,
    SlurmSettings,
    SubtractionSettings,
)

__all__ = [
    "IMAGES_PER_COEFFICIENT",
    "CalibrateSettings",
    "ClusterSettings",
    "Config",
    "ConfigError",
    "CpmSettings",
    "DetectSettings",
    "GridSettings",
    "InputSettings",
    "Keywords",
    "Nn2Settings",
    "PhotometrySettings",
    "PsfSettings",
    "ReferenceSettings",
    "RegisterSettings",
    "ReportSettings",
    "Settings",
    "SlurmSettings",
    "SubtractionSettings",
    "from_store",
    "load_config",
    "make_config",
    "settings_hash",
    "to_show",
    "to_store",
]


class ConfigError(ValueError):
    """Settings that cannot be used; the message names the key and the way out."""


class Config(Settings):
    """All settings of a run.

    Examples
    --------
    >>> Config(reference={"clip": 5}).reference.clip
    5.0
    """

    method: Literal["oversampled", "cpm", "sfft", "zogy", "hotpants"] = Field(
        "oversampled",
        description="how differences are made; a field holds those of several methods side by side",
    )
    input: InputSettings = InputSettings()
    registration: RegisterSettings = RegisterSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    grid: GridSettings = GridSettings()
    reference: ReferenceSettings = ReferenceSettings()
    cpm: CpmSettings = CpmSettings()
    subtraction: SubtractionSettings = SubtractionSettings()
    psf: PsfSettings = PsfSettings()
    detect: DetectSettings = DetectSettings()
    photometry: PhotometrySettings = PhotometrySettings()
    nn2: Nn2Settings = Nn2Settings()
    report: ReportSettings = ReportSettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        _check_keys(cls, values, "")
        return values


def _check_keys(model: type[BaseModel], values: Any, where: str) -> None:
    """Raise on the first unknown key, naming the nearest known one."""
    if not isinstance(values, dict):
        return
    for key, value in values.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(key, model.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(model.model_fields))}"
            raise ConfigError(f"unknown setting {where + key!r}; {hint}")
        annotation = model.model_fields[key].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            _check_keys(annotation, value, f"{where}{key}.")


# Where work runs, and by which program: a field that somebody else made does not decide it, and a job's setup
# lines may hold what nobody else should read.
NOT_STORED: dict[str, Any] = {"cluster": True, "subtraction": {"hotpants"}}


def to_store(config: Config) -> dict[str, Any]:
    """Settings as a field keeps them."""
    return config.model_dump(mode="json", exclude=NOT_STORED)


def from_store(values: dict[str, Any], *, source: str = "settings") -> Config:
    """Settings that a field keeps, without what no field decides, whoever wrote it.

    Raises
    ------
    ConfigError
        As `make_config`.
    """
    config = make_config(values, source=source)
    return make_config(to_store(config), source=source)


def to_show(config: Config) -> dict[str, Any]:
    """Settings as a run's files tell them: without the lines of shell and options of jobs."""
    return config.model_dump(mode="json", exclude={"cluster": {"slurm": set(SlurmSettings.PRIVATE)}})


def make_config(values: dict[str, Any], *, source: str = "settings") -> Config:
    """Validate a plain dict; errors name the source, the key and what is allowed.

    Raises
    ------
    ConfigError
        If a key is unknown or a value is not allowed.
    """
    try:
        return Config(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        prefix = f"{where} = {first['input']!r}: " if where else ""
        raise ConfigError(f"{source}: {prefix}{message}") from None


def load_config(path: str | Path) -> Config:
    """Read a TOML file. Relative paths in it are taken relative to the file.

    Raises
    ------
    ConfigError
        If the file is missing, is not TOML, or holds settings that cannot be used.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    config = make_config(values, source=str(path))
    base = path.resolve().parent
    config.input.frames = [_pattern(base, p) for p in config.input.frames]
    for table, key in (
        (config.input, "bias"),
        (config.input, "dark"),
        (config.input, "flat"),
        (config.psf, "file"),
        (config.photometry, "targets"),
        (config.registration, "catalog"),
        (config.cluster, "tls"),
    ):
        if getattr(table, key) is not None:
            setattr(table, key, _absolute(base, getattr(table, key)))
    return config


def _pattern(base: Path, pattern: str) -> str:
    """A path or glob pattern relative to a folder, whose own name is no pattern."""
    named = _absolute(base, pattern)
    if Path(named).exists() or Path(pattern).expanduser().is_absolute():
        return named
    return str(Path(glob.escape(str(base))) / pattern)


def _absolute(base: Path, path: str) -> str:
    return str(base / Path(path).expanduser())


def settings_hash(*parts: Any) -> str:
    """Short stable hash of settings (models or plain data): the identity of a product."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
