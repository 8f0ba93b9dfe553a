"""PSFs as PSFEx writes them: a polynomial of the position in every pixel of a sampled PSF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Array = NDArray[np.float64]


class PsfexError(ValueError):
    """A file that is no PSFEx model, or one that varies with something other than the position."""


@dataclass(frozen=True)
class PsfexPSF:
    """A PSFEx model. Called with a position it gives the PSF there, as `survey.kernels.zogy` wants it.

    Attributes
    ----------
    components : array (n_terms, k, k)
        Coefficients of x^i y^j, the powers of x running faster.
    sampling : float
        Image pixels a sample.
    zero, scale : (float, float)
        (x, y): the polynomials' variables are (position - zero) / scale, positions counted from 1.
    degree : int

    References
    ----------
    Bertin 2011, ADASS XX, ASP Conf. 442, 435; the file's keywords are those of the PSFEx manual.
    """

    components: Array
    sampling: float
    zero: tuple[float, float]
    scale: tuple[float, float]
    degree: int

    def __call__(self, y: float, x: float) -> Array:
        """PSF (k, k), odd k, sum 1, centred on its middle pixel, at a position in pixels from 0."""
        fine = self.fine(y, x)
        half = int(self.sampling * (min(fine.shape) - 1) / 2)
        at = np.arange(-half, half + 1) / self.sampling
        rows, columns = (at + (n - 1) / 2 for n in fine.shape)
        stamp = map_coordinates(fine, np.meshgrid(rows, columns, indexing="ij"), order=3, mode="constant")
        return np.asarray(stamp / stamp.sum())

    def fine(self, y: float, x: float) -> Array:
        """The PSF (k, k) at a position as it is sampled in the file."""
        u = (x + 1 - self.zero[0]) / self.scale[0]
        v = (y + 1 - self.zero[1]) / self.scale[1]
        terms = [u**i * v**j for j in range(self.degree + 1) for i in range(self.degree + 1 - j)]
        return np.asarray(np.tensordot(terms, self.components, axes=1))


def read_psfex(path: str | Path) -> PsfexPSF:
    """Read a PSFEx file (``.psf``).

    Raises
    ------
    PsfexError
        If it is none, or its PSF depends on something other than x and y.
    """
    try:
        with fits.open(path, memmap=False) as hdus:
            table = next(h for h in hdus if isinstance(h, fits.BinTableHDU) and "PSF_MASK" in h.columns.names)
            header, components = table.header, np.array(table.data["PSF_MASK"][0], float)
    except (OSError, StopIteration) as problem:
        raise PsfexError(f"{path}: no PSFEx model can be read from it ({problem})") from None
    axes = int(header.get("POLNAXIS", 0))
    names = [str(header[f"POLNAME{i}"]) for i in range(1, axes + 1)]
    if axes not in (0, 2) or any(not n.startswith(c) for n, c in zip(names, ("X", "Y"), strict=False)):
        raise PsfexError(
            f"{path}: its PSF varies with {', '.join(names)}; only x and y of the image are known"
        )
    zero = (float(header["POLZERO1"]), float(header["POLZERO2"])) if axes else (0.0, 0.0)
    scale = (float(header["POLSCAL1"]), float(header["POLSCAL2"])) if axes else (1.0, 1.0)
    degree = int(header["POLDEG1"]) if axes else 0
    return PsfexPSF(components, float(header["PSF_SAMP"]), zero, scale, degree)
