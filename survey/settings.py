"""The tables of a run's settings: what can be chosen, its default, its limits."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# With fewer images a sample has most of the say in its own prediction, and no residual tells anything.
IMAGES_PER_COEFFICIENT = 1.5


class Settings(BaseModel):
    """Base of all tables: unknown keys are errors, values are checked on assignment."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} pixels have no middle; give an odd number")
    return value


class Keywords(Settings):
    """FITS header keywords to read; a list is tried in order, an empty one switches the item off."""

    time: list[str] = ["MJD-OBS", "MJD-BEG", "EXPSTART", "DATE-OBS"]
    exposure: list[str] = ["EXPTIME", "EXPOSURE"]
    band: list[str] = ["FILTER", "BAND"]
    detector: list[str] = ["DETECTOR", "CCDNUM", "CHANNEL"]
    gain: list[str] = ["EGAIN", "GAIN"]
    read_noise: list[str] = ["RDNOISE", "READNOIS"]
    saturation: list[str] = ["SATURATE", "SATURATION"]
    zero_point: list[str] = ["MAGZPT", "MAGZERO", "ZEROPNT", "PHOTZPT"]
    units: list[str] = ["BUNIT"]


class InputSettings(Settings):
    """What the frames are and how they are read (table `[input]`)."""

    frames: list[str] = Field([], description="paths or glob patterns, relative to the file that names them")
    science: str | int = Field("auto", description="extension of the image: name, number, or auto")
    error: str | int | None = Field(
        "auto", description="extension of the 1-sigma error (auto: ERR, ERROR, …)"
    )
    error_kind: Literal["auto", "sigma", "variance", "inverse-variance"] = Field(
        "auto", description="what the error extension holds; auto: by its name (VAR, IVAR), else sigma"
    )
    dq: str | int | None = Field("auto", description="extension of the data-quality bits (auto: DQ, MASK, …)")
    bad_bits: int | list[int | str] | None = Field(
        None,
        description="bits that mean bad: a sum, or a list of values and names (Roman, Kepler, TESS); "
        "none given: every set bit, or what the mission advises",
    )
    noise: Literal["auto", "model", "measured"] = Field(
        "auto", description="without an error plane: from gain and read noise, or measured in the image"
    )
    gain: float | None = Field(None, gt=0, description="electrons per unit; overrides the keyword")
    read_noise: float | None = Field(None, ge=0, description="electrons; overrides the keyword")
    saturation: float | None = Field(None, description="level at and above which a pixel is saturated")
    minimum: float | None = Field(None, description="level below which a pixel holds no data")
    bias: str | None = Field(None, description="FITS image to subtract from the counts")
    dark: str | None = Field(
        None, description="FITS image to subtract, scaled to the exposure where bias is given"
    )
    flat: str | None = Field(None, description="FITS image to divide by; its median stands for 1")
    pattern: bool = Field(
        False,
        description="subtract what the detector adds to every frame alike (hot pixels), measured from the "
        "frames themselves; they must drift by many pixels",
    )
    pattern_frames: int = Field(128, ge=16, description="frames, over the whole time, that it is measured in")
    grow_saturated: int = Field(1, ge=0, description="pixels by which saturated areas are grown")
    band: str | None = Field(None, description="keep this band only")
    detector: str | None = Field(None, description="keep this detector only")
    cutout: tuple[int, int, int, int] | None = Field(
        None, description="y0, y1, x0, x1 in pixels of the frames: read this part only"
    )
    time_scale: Literal["auto", "utc", "tai", "tt", "tdb"] = Field(
        "auto", description="scale of the times; auto: the header's TIMESYS, else UTC"
    )
    time_format: str = Field(
        "auto",
        description="auto (MJD, JD or ISO date), mjd, jd, bkjd (Kepler), btjd (TESS), or one of astropy's",
    )
    time_reference: Literal["start", "middle", "end"] = Field(
        "start", description="which moment of the exposure the keyword gives"
    )
    date_keyword: str | None = Field(None, description="keyword of the date, where time holds hours only")
    day_starts: float = Field(
        0.0, ge=0, lt=24, description="hour at which the date keyword's day begins (evening's date: 12)"
    )
    time_offset_days: float = Field(0.0, description="added to every time")
    exposure: float | None = Field(None, ge=0, description="seconds; overrides the keyword")
    duplicates: Literal["time", "content", "keep"] = Field(
        "time",
        description="a frame is a duplicate if time and detector are another's (time), or its bytes are "
        "(content); keep: take all",
    )
    keywords: Keywords = Keywords()


class RegisterSettings(Settings):
    """How frames are brought onto one grid (table `[registration]`)."""

    mode: Literal["auto", "wcs", "stars", "none"] = Field("auto", description="auto: WCS where there is one")
    reference: str = Field("auto", description="frame that defines the sky grid: auto, or a file name")
    order: int = Field(1, ge=0, le=3, description="degree of the map; WCS maps take what they need")
    min_stars: int = Field(6, ge=3)
    max_rotation: float = Field(2.0, ge=0, description="degrees")
    threshold: float = Field(10.0, gt=0, description="S/N of the stars used")
    max_stars: int = Field(300, ge=10)
    refine_offsets: bool = Field(False, description="analytic offset correction after a first reference")
    catalog: str | None = Field(
        None, description="table of bright stars, for frames without WCS: ra, dec; x, y where known"
    )
    pixel_scale: float | None = Field(None, gt=0, description="arcsec a pixel, for the catalog")
    rotation: float = Field(0.0, description="degrees from the y axis to north, for a catalog of one star")
    parity: Literal[1, -1] | None = Field(None, description="1: east left of north, -1: mirrored")


class CalibrateSettings(Settings):
    """Scale and background of each frame (table `[calibrate]`)."""

    scale: Literal["stars", "unit"] = Field("stars", description="photometric scale from stars, or 1")
    background: Literal["level", "surface", "none"] = Field(
        "level", description="one level a frame, a second-order surface, or nothing"
    )


class GridSettings(Settings):
    """How the cube is cut (table `[grid]`). Fixed when the field is created."""

    tile: int | None = Field(None, ge=16, description="tile edge in pixels; none: from epochs and memory")
    time_block: int = Field(32, ge=1, description="epochs in one shard")
    memory: float = Field(1.5, gt=0, description="GiB a worker may use for one tile")


class ReferenceSettings(Settings):
    """The oversampled reference (table `[reference]`)."""

    n_basis: int = Field(
        6, ge=1, le=9, description="Legendre polynomials per axis; 5 suffice above FWHM 1.3 px"
    )
    extension: float = Field(1.2, ge=1.0, le=1.8)
    iterations: int = Field(5, ge=1)
    clip: float = Field(4.0, gt=0)
    min_images: int | None = Field(
        None, ge=1, description="images a pixel needs; none: one and a half times the coefficients"
    )

    keep_sums: bool = Field(
        True, description="keep the sums (1.3 kB a pixel) from which a later night is added to the reference"
    )

    @property
    def needed_images(self) -> int:
        """Images a pixel needs for a reference."""
        return self.min_images or math.ceil(IMAGES_PER_COEFFICIENT * self.n_basis**2)

    def for_epochs(self, epochs: int) -> ReferenceSettings:
        """These settings with as many polynomials as so many epochs can fix in nine pixels of ten."""
        if self.min_images is not None:
            return self
        n_basis = self.n_basis
        while n_basis > 1 and IMAGES_PER_COEFFICIENT * n_basis**2 > 0.9 * epochs:
            n_basis -= 1
        return self.model_copy(update={"n_basis": n_basis})


class CpmSettings(Settings):
    """Prediction from distant pixels (table `[cpm]`)."""

    grid: Literal["auto", "detector", "sky"] = Field(
        "auto",
        description="detector: right where stars stay within about half the PSF's width, as from space; sky: "
        "else; auto: by the stars' measured motion",
    )
    predictors: Literal["closest", "brightness", "similarity", "cosine", "l1", "random"] = Field(
        "closest",
        description="which of the allowed pixels predict a block; l1: those that L1 regression keeps",
    )
    n_predictors: int | list[int] = Field(
        200, description="pixels that predict a block; of several numbers the best is chosen for the field"
    )
    components: int | None = Field(
        None, ge=1, description="so many principal components of the predictors stand for them; none: all"
    )
    time_order: int = Field(
        0, ge=0, le=5, description="degree of a polynomial in time fitted along, without penalty"
    )
    weights: Literal["epoch", "pixel"] = Field(
        "epoch",
        description="epochs weigh alike for all pixels, or samples by their own errors (a pixel takes as "
        "long as a block then)",
    )
    residuals: Literal["held-out", "in-sample"] = Field(
        "held-out", description="in-sample residuals look better and have eaten of the signal"
    )
    leave_out: list[tuple[float, float]] = Field(
        [], description="MJD intervals (of events) that are predicted and not trained on"
    )
    exclusion: float = Field(10, ge=1, description="pixels between a pixel and those that predict it")
    row_column_exclusion: int = Field(
        4, ge=0, description="neighbouring rows and columns that predict a pixel neither"
    )
    reach: int = Field(14, ge=1, description="pixels beyond the exclusion within which predictors lie")
    ridge: float | None = Field(
        None, gt=0, description="in units of n_predictors x error^2; none: cross-validated over the field"
    )
    folds: int = Field(10, ge=2, description="stretches of time held out in turn")
    block: int = Field(
        8, ge=1, description="pixels along the edge of a block that shares its predictors; 1 for small stamps"
    )
    two_passes: bool = Field(True, description="variables of a first pass do not predict in the second")
    variable: float = Field(
        2.0,
        gt=0.8,
        description="mean |difference| / photon error from which on a pixel is variable (noise: 0.8)",
    )
    max_variable: float = Field(
        0.05, ge=0, lt=1, description="largest share of pixels, the most variable, taken for variables"
    )

    @property
    def counts(self) -> list[int]:
        """The numbers of predictors to choose from."""
        return [self.n_predictors] if isinstance(self.n_predictors, int) else self.n_predictors

    @model_validator(mode="after")
    def _check(self) -> CpmSettings:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"n_predictors = {self.n_predictors}: give one number >= 1, or several")
        for first, last in self.leave_out:
            if not first < last:
                raise ValueError(f"leave_out: [{first}, {last}] does not begin before it ends")
        return self


class SubtractionSettings(Settings):
    """Classical subtraction, methods sfft, zogy and hotpants (table `[subtraction]`)."""

    template: str = Field(
        "reference",
        description="what is subtracted: the oversampled reference, or the name of a template that the "
        "field holds (`survey template`), its sky subtracted and in reference flux units",
    )
    kernel_size: int | None = Field(
        None,
        ge=1,
        le=31,
        description="edge of the kernel in pixels, odd; none: from the PSF widths of frames and template",
    )
    kernel_order: int | None = Field(
        None,
        ge=0,
        le=4,
        description="degree of the kernel over the field; none: 2, less where it is very small",
    )
    flux_order: int = Field(0, ge=0, le=4, description="degree of the kernel's sum")
    background_order: int = Field(2, ge=0, le=4, description="degree of the background")
    ridge: float = Field(1e-6, gt=0)
    clip: float = Field(5.0, gt=0, description="sigma beyond which a pixel leaves the fit of the kernel")
    passes: int = Field(3, ge=1, le=8, description="of fit, weighting and clipping")
    psf: Literal["auto", "frames", "field"] = Field(
        "auto",
        description="zogy, hotpants: whose PSF a frame has; auto: its own stars', the field's where that is "
        "narrower than two pixels",
    )
    hotpants: str | None = Field(None, description="path of the external program; none: on the PATH")
    timeout: float = Field(600.0, gt=0, description="seconds that program may take for a frame")

    @model_validator(mode="after")
    def _odd(self) -> SubtractionSettings:
        if self.kernel_size is not None and self.kernel_size % 2 == 0:
            raise ValueError(f"a kernel of {self.kernel_size} pixels has no middle; give an odd number")
        return self


class PsfSettings(Settings):
    """The effective PSF (table `[psf]`)."""

    file: str | None = Field(
        None,
        description="the PSF: FITS image, gridded library (STPSF, photutils), PSFEx; none: from the stars",
    )
    fwhm: float | None = Field(
        None, gt=0, description="pixels: a round Gaussian, for stamps with fewer than five clean stars"
    )
    oversampling: int = Field(4, ge=1)
    size: int = Field(15, ge=5, description="edge in detector pixels, odd")
    pixel_integrated: bool = Field(True, description="whether the file's PSF includes the pixel")
    max_stars: int = Field(60, ge=5)

    _odd_size = field_validator("size")(_odd)

    @model_validator(mode="after")
    def _one_source(self) -> PsfSettings:
        if self.file is not None and self.fwhm is not None:
            raise ValueError("give file or fwhm, not both")
        return self

    @property
    def given(self) -> bool:
        """Whether the settings say what the PSF is, so that no stars are needed."""
        return self.file is not None or self.fwhm is not None


class DetectSettings(Settings):
    """The event search (table `[detect]`)."""

    temporal_sigma: list[Annotated[float, Field(gt=0)]] = Field(
        [2.0, 4.0, 8.0, 16.0], min_length=1, description="time scales, 1 sigma, in `unit`"
    )
    unit: Literal["images", "days"] = "images"
    threshold: float | None = Field(None, gt=0, description="S/N; none: from false_alarms")
    false_alarms: float = Field(0.1, gt=0, description="expected in the whole volume, all scales together")
    min_epochs: int = Field(2, ge=1, description="supporting epochs below which it is no event")
    max_events: int = Field(1000, ge=1, description="strongest peaks that are measured and may be events")
    refit: bool = Field(True, description="take found events out of the reference and fit again")


class PhotometrySettings(Settings):
    """Light curves (table `[photometry]`)."""

    targets: str | None = Field(
        None,
        description="table with ra, dec or x, y (CSV, ECSV, VOTable); pixels of the reference grid, from 0",
    )
    relative: bool = Field(
        False, description="also correct the first target by comparison stars, for the report"
    )
    size: int = Field(7, ge=3, description="edge of the fitted stamp in pixels, odd")
    _odd_size = field_validator("size")(_odd)
    refine_position: bool = True
    background: bool = Field(False, description="fit a local background with each flux")


class Nn2Settings(Settings):
    """Light curves from all pairs of frames (table `[nn2]`)."""

    subtract: Literal["sfft", "zogy", "hotpants", "carried"] = Field(
        "sfft",
        description="how a pair is subtracted; carried: through the reference, for undersampled frames",
    )
    pairs: Literal["all"] | int = Field(
        "all", description="all, or so many random partners a frame (2 and more)"
    )
    seed: int = Field(0, description="of the random partners")
    direction: Literal["sharper", "both"] = Field(
        "sharper", description="the sharper frame is convolved, or each in turn and both averaged"
    )
    kernel: int | None = Field(
        None, ge=1, description="edge of the kernel, odd; none: from the two PSFs' widths"
    )
    cell: int = Field(96, ge=8, description="edge of the cells whose objects share their cutouts")
    margin: int = Field(32, ge=8, description="pixels of the cutouts beyond the cell")
    errors: Literal["copies", "noise"] = Field(
        "copies", description="from what scatters at empty places of each difference, or the noise map"
    )
    gauge: Literal["zero-sum", "weighted", "baseline"] = "weighted"
    baseline: tuple[float, float] | None = Field(
        None, description="first and last MJD without flux, for gauge = 'baseline'"
    )
    refine_position: bool = Field(True, description="fit the events' places on the differences")

    @model_validator(mode="after")
    def _check(self) -> Nn2Settings:
        if self.pairs != "all" and self.pairs < 2:
            raise ValueError(f"pairs = {self.pairs}: a frame needs at least 2 partners, or 'all'")
        if self.kernel is not None and self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel}: an odd number of pixels is needed")
        if self.gauge == "baseline" and self.baseline is None:
            raise ValueError("gauge = 'baseline' needs baseline = [first, last] in MJD")
        return self


class ReportSettings(Settings):
    """The report (table `[report]`)."""

    events: int = Field(12, ge=0, description="events shown with cutouts and light curves")


class SlurmSettings(Settings):
    """Workers as Slurm jobs (table `[cluster.slurm]`)."""

    partition: str | None = Field(None, description="partition; none: the site's default")
    account: str | None = None
    walltime: str = Field("04:00:00", description="of a job; what is done is kept when it ends")
    memory: str = Field("4GiB", description="of a job, shared by its workers")
    workers_per_job: int = Field(1, ge=1, description="single-threaded workers in a job")
    interface: str | None = Field(None, description="network interface of the nodes, e.g. ib0")
    setup: list[str] = Field([], description="shell lines before the worker starts: module load …, activate")
    directives: list[str] = Field([], description="further #SBATCH options")
    scratch: str | None = Field(None, description="local directory of the workers")
    logs: str | None = Field(None, description="directory of the jobs' output")

    # What may hold that which gives access to something.
    PRIVATE: ClassVar[tuple[str, ...]] = ("setup", "directives")


class ClusterSettings(Settings):
    """Where the work runs (table `[cluster]`). Never changes a result."""

    scheduler: str | None = Field(None, description="address of a Dask scheduler; none: embedded cluster")
    workers: int | None = Field(None, ge=1, description="none: one a core")
    memory_limit: str = "auto"
    dashboard: str = Field("127.0.0.1:0", description="address of the dashboard of the embedded cluster")
    tls: str | None = Field(None, description="directory of certificates, as `survey certs` makes it")
    slurm: SlurmSettings | None = Field(None, description="start the workers as Slurm jobs")
