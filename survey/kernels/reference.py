"""The oversampled reference of every pixel and the leave-one-out differences against it.

Model of one pixel (Albrow 2025, AJ 169, 297, section 2): the flux a pixel would record at phase (y, x) is
R(y, x) = sum_lm theta[l, m] P_l(2 y / f) P_m(2 x / f), f the extension factor. Rows of its least-squares fit
are its own samples and those of the eight neighbours whose position lies within f / 2 of its centre.

Beyond the paper:

- Every pixel weighs and judges all its rows itself, neighbours' samples too. So its result depends on no
  sample beyond its eight neighbours, however many passes clip: see `halo`.
- Weights and errors take the variance at the model's flux. Errors are commonly made from the observed counts,
  and weights from these pull a faint pixel's fit down by 0.04 sigma. How far ``error**2`` follows the noise
  in ``flux`` is `1 / gain` where the caller knows it, else it is measured in every pixel.
- Differences leave the sample's own image out: D = r / (1 - h), error sigma / sqrt(1 - h), h the leverage.
- The ridge is scale free: `ridge` times the mean weight of a row is added to every diagonal entry but the
  constant's, as if `ridge` samples said that the surface is flat. At the default 1e-6 it moves the
  least-determined coefficient of 96 images by 1e-6 of itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy.ndimage import binary_dilation, generate_binary_structure

from survey.kernels import _reference_fit as _fit
from survey.kernels._reference_gather import Cube
from survey.kernels._reference_model import Difference, Mask, ReferenceFit
from survey.kernels._reference_plan import Settings, make_plan

__all__ = [
    "Difference",
    "ReferenceFit",
    "difference_images",
    "fit_reference",
    "grow_mask",
    "halo",
    "refine_offsets",
]


def halo(extension: float = 1.2, *, grow: int = 0) -> int:
    """Pixels a tile needs around its core so that the core equals the whole image's result, bit for bit.

    Examples
    --------
    >>> halo(1.2), halo(1.2, grow=2), halo(1.0)
    (1, 3, 0)
    """
    return grow + (1 if extension > 1 else 0)


def grow_mask(mask: Mask, radius: int) -> Mask:
    """Bad samples (time, y, x) grown by `radius` steps to the four nearest pixels of the same image."""
    if radius == 0:
        return mask
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = generate_binary_structure(2, 1)
    return binary_dilation(mask, structure, iterations=radius)


def difference_images(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike | None,
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    *,
    n_basis: int = 5,
    extension: float = 1.2,
    ridge: float = 1e-6,
    iterations: int = 5,
    clip: float = 4.0,
    positive_only: bool = False,
    leave_one_out: bool = True,
    fit_mask: ArrayLike | None = None,
    min_images: int | None = None,
    gain: ArrayLike | None = None,
    grow: int = 0,
    keep_normal: bool = False,
    prior: ReferenceFit | None = None,
    steep: float | None = None,
    dtype: DTypeLike = np.float64,
) -> Difference:
    """Fit the reference, clip outliers, and difference every sample against a reference without it.

    Parameters
    ----------
    flux, error : array (time, y, x)
        Samples on the reference grid and their 1-sigma errors. Not finite, or error <= 0: bad.
    mask : bool array (time, y, x) or None
        True = bad.
    phase_y, phase_x : array (time,) or (time, y, x)
        Sample [k, y, x] was taken at (y + phase_y, x + phase_x);
        not finite, or beyond ``extension / 2``: bad.
    n_basis : int
        Legendre polynomials per axis.
    extension : float
        Width of a pixel's domain in pixels, 1 to 2.
    ridge : float
        See the module; 0 for none.
    iterations : int
        Rounds of clipping; there is one more fit than rounds.
    clip : float
        Samples beyond this many errors leave the fit (their difference stays); the worst of a pixel first.
    positive_only : bool
        Clip only positive outliers.
    leave_one_out : bool
        False: in-sample residuals and their errors sigma sqrt(1 - h).
    fit_mask : bool array (time, y, x), optional
        True = good sample to keep out of every fit from the start (events).
    min_images : int, optional
        Pixels with fewer samples of their own in the fit are masked; default ``n_basis**2``.
    gain : float or array (time,), optional
        Electrons per unit of flux where ``error**2`` is linear in `flux` with this slope's inverse;
        ``np.inf`` where errors do not follow the observed flux. Default: measured in every pixel.
    grow : int
        Pixels by which bad samples spread in their image.
    keep_normal : bool
        Keep the sums from which a later night can go on.
    prior : ReferenceFit, optional
        Reference of earlier images with its sums: these images are added to it, and differenced against
        the sum. `n_used` counts both; `chi2` is that of the new images.
    steep : float, optional
        Pixels whose surface spans more than this many errors over the phases get ``n_basis + 1``
        polynomials per axis, those beyond five times that ``n_basis + 2``, where each coefficient has 1.5
        images; coefficients of all pixels then have the largest shape. Of a Gaussian of FWHM 1.1 px five
        polynomials miss span / 500 (rms), six span / 2700, seven span / 20000: 100 holds the misfit below
        0.2 error. Not with `keep_normal` or `prior`.
    dtype : float64 or float32
        Precision of the sums; products have the precision of `flux`.

    Returns
    -------
    Difference

    Raises
    ------
    ValueError
        If shapes do not match or a setting lies outside its range.

    Examples
    --------
    >>> rng = np.random.default_rng(1)
    >>> phase_y, phase_x = rng.uniform(-0.5, 0.5, (2, 40))
    >>> flux = 10 + 3 * phase_x[:, None, None] + rng.normal(0, 0.1, (40, 6, 6))
    >>> difference = difference_images(flux, np.full(flux.shape, 0.1), None, phase_y, phase_x, n_basis=2)
    >>> round(float(np.std(difference.flux / difference.error)))
    1
    """
    _check_settings(n_basis, extension, ridge, iterations, clip, dtype)
    cube, phases, slope = _checked(flux, error, mask, phase_y, phase_x, fit_mask, gain, grow)
    shape = (cube.flux.shape[0], *cube.shape)
    settings = Settings(
        n_basis, extension, ridge, iterations, clip, positive_only, leave_one_out,
        n_basis**2 if min_images is None else min_images,
    )  # fmt: skip
    earlier = None if prior is None else _prior_sums(prior, cube.shape, settings)
    plan = make_plan(phases[0], phases[1], shape[0], settings, slope, earlier, np.dtype(dtype))
    out = _fit.fit(cube, plan, np.dtype(dtype), keep_normal)
    if steep is not None:
        if keep_normal or prior is not None:
            raise ValueError("steep fits have no sums of one size: not with keep_normal or prior")
        plans = [
            make_plan(
                phases[0], phases[1], shape[0], settings._replace(n_basis=n), slope, None, np.dtype(dtype)
            )
            for n in (n_basis + 1, n_basis + 2)
        ]
        out = _fit.refit_steep(cube, plans, out, steep, n_basis, np.dtype(dtype))
        n_basis += 2
    image, degrees = cube.shape, 2 * n_basis - 1
    valid = out.valid.reshape(image)
    reference = ReferenceFit(
        out.theta.reshape(*image, n_basis, n_basis),
        out.n_used.reshape(image),
        out.chi2.reshape(image),
        valid,
        extension,
        out.moments.reshape(*image, degrees, degrees) if keep_normal else None,
        out.right.reshape(*image, n_basis, n_basis) if keep_normal else None,
    )
    reference.coefficients[~valid] = 0.0
    return Difference(
        out.flux.reshape(shape),
        out.error.reshape(shape),
        out.mask.reshape(shape),
        out.fit_mask.reshape(shape),
        out.leverage.reshape(shape),
        reference,
    )


def fit_reference(
    flux: ArrayLike,
    error: ArrayLike,
    mask: ArrayLike | None,
    phase_y: ArrayLike,
    phase_x: ArrayLike,
    *,
    n_basis: int = 5,
    extension: float = 1.2,
    ridge: float = 1e-6,
    fit_mask: ArrayLike | None = None,
    min_images: int | None = None,
    gain: ArrayLike | None = None,
    grow: int = 0,
    keep_normal: bool = False,
    dtype: DTypeLike = np.float64,
) -> ReferenceFit:
    """Reference alone, from all samples not masked: one fit, no clipping.

    Parameters as in `difference_images`; weights come from the variance at the flux of an unweighted fit.

    Examples
    --------
    >>> phase_y, phase_x = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 40))
    >>> flux = np.tile(10 + 3 * phase_x[:, None, None], (1, 4, 4))
    >>> reference = fit_reference(flux, np.ones(flux.shape), None, phase_y, phase_x, n_basis=2, extension=1.0)
    >>> float(reference.evaluate([0.0], [0.5])[0, 2, 2].round(3))
    11.5
    """
    return difference_images(
        flux, error, mask, phase_y, phase_x, n_basis=n_basis, extension=extension, ridge=ridge, iterations=0,
        fit_mask=fit_mask, min_images=min_images, gain=gain, grow=grow, keep_normal=keep_normal, dtype=dtype,
    ).reference  # fmt: skip


def refine_offsets(
    difference: Difference, phase_y: ArrayLike, phase_x: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A tile's sums for the correction of every image's offset (Albrow 2025, section 2; METHODS 1).

    Summed by the caller over all tiles, ``np.linalg.solve(a, b[..., None])[..., 0]`` is the (y, x) that the
    image's phases lack: true phase = phase + correction. The mean over images is not determined by the data
    (it moves the reference): the caller holds it fixed.

    Parameters
    ----------
    difference : Difference
        Of the tile's core, leave-one-out.
    phase_y, phase_x : array (time,) or (time, y, x)
        Phases that the differences were made with.

    Returns
    -------
    a : array (time, 2, 2)
        sum of grad R grad R^T / error^2 over good samples, y first.
    b : array (time, 2)
        sum of D grad R / error^2.
    """
    good = ~(difference.mask | difference.fit_mask)
    weight = np.where(good, 1.0 / np.where(good, difference.error, 1.0).astype(float) ** 2, 0.0)
    flux = np.where(good, difference.flux, 0.0)
    gradient = np.stack(difference.reference.gradient(phase_y, phase_x))
    gradient[:, ~good] = 0.0
    a = np.einsum("ikyx,kyx,jkyx->kij", gradient, weight, gradient, optimize=True)
    b = np.einsum("ikyx,kyx,kyx->ki", gradient, weight, flux, optimize=True)
    return a, b


def _check_settings(n_basis, extension, ridge, iterations, clip, dtype):
    if iterations < 0 or clip <= 0 or ridge < 0:
        raise ValueError(f"iterations {iterations}, clip {clip}, ridge {ridge}: must be >= 0, > 0, >= 0")
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype {dtype}: float64 or float32")
    if n_basis < 1 or not 1.0 <= extension <= 2.0:
        raise ValueError(f"n_basis {n_basis} must be >= 1, extension {extension} between 1 and 2 pixels")


def _checked(flux, error, mask, phase_y, phase_x, fit_mask, gain, grow):
    """Cube with flat pixels, phases of one shape, and the slope of the variance where the gain is known."""
    flux, error = np.asarray(flux), np.asarray(error)
    if flux.ndim != 3 or error.shape != flux.shape:
        raise ValueError(f"flux {flux.shape} and error {error.shape} must be (time, y, x) of one shape")
    kind = np.float32 if flux.dtype.itemsize <= 4 and flux.dtype.kind == "f" else np.float64
    n_time, *image = flux.shape
    phases = []
    for name, phase in (("phase_y", phase_y), ("phase_x", phase_x)):
        phase = np.asarray(phase, float)
        if phase.shape not in ((n_time,), flux.shape):
            raise ValueError(f"{name} {phase.shape} must be (time,) or (time, y, x) of flux {flux.shape}")
        phases.append(phase)
    if phases[0].ndim != phases[1].ndim:
        phases = [p if p.ndim == 3 else np.broadcast_to(p[:, None, None], flux.shape) for p in phases]
    masks = [np.zeros(flux.shape, bool) if mask is None else np.asarray(mask, bool)]
    masks += [np.zeros((0, 0), bool) if fit_mask is None else np.asarray(fit_mask, bool)]
    for name, array in zip(("mask", "fit_mask"), masks, strict=True):
        if array.size and array.shape != flux.shape:
            raise ValueError(f"{name} {array.shape} does not match flux {flux.shape}")
    masks[0] = grow_mask(_bad(flux, error, masks[0]), grow) if grow else masks[0]

    def flat(array, kind):
        return np.ascontiguousarray(array, kind).reshape(len(array), -1 if array.size else 0)

    cube = Cube(
        flat(flux, kind), flat(error, kind), flat(masks[0], bool), flat(masks[1], bool),
        flat(phases[0], float), flat(phases[1], float), (image[0], image[1]),
    )  # fmt: skip
    slope = None if gain is None else np.broadcast_to(1.0 / np.asarray(gain, float), (n_time,))
    return cube, phases, slope


def _prior_sums(prior, image, settings):
    """Sums of an earlier reference, pixels flat."""
    if prior.normal is None or prior.moment is None:
        raise ValueError("the prior reference kept no sums; fit it with keep_normal=True")
    if prior.valid.shape != image or (prior.n_basis, prior.extension) != settings[:2]:
        raise ValueError(
            f"prior reference {prior.valid.shape}, n_basis {prior.n_basis}, extension {prior.extension} "
            f"does not match {image}, {settings.n_basis}, {settings.extension}"
        )
    n_pixels = image[0] * image[1]
    known = np.where(prior.valid, prior.n_used, 0)
    arrays = (prior.normal, prior.moment, prior.coefficients)
    return *(a.reshape(n_pixels, -1) for a in arrays), known.ravel()


def _bad(flux, error, mask):
    """Samples that no fit may touch."""
    with np.errstate(invalid="ignore"):
        return mask | ~(np.isfinite(flux) & np.isfinite(error) & (error > 0))
