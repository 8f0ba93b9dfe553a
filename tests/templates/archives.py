"""Files in the archives' own formats, made of a list of stars; what a real answer holds, they hold."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

PS1_SCALE, LS_SCALE = 0.25, 0.262


def tan(ra, dec, scale, shape, flip=True):
    """A tangent plane around a middle, east left."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.crpix = [ra, dec], [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    wcs.wcs.cdelt = [-scale / 3600 if flip else scale / 3600, scale / 3600]
    return wcs


def draw(wcs, shape, stars, scale, fwhm=1.3):
    """Stars (ra, dec, flux) on an image; fwhm in arcsec."""
    sigma, image = fwhm / 2.3548 / scale, np.zeros(shape)
    y, x = np.indices(shape)
    for ra, dec, flux in stars:
        cx, cy = wcs.wcs_world2pix([[ra, dec]], 0)[0]
        if not (-20 < cx < shape[1] + 20 and -20 < cy < shape[0] + 20):
            continue
        near = np.hypot(y - cy, x - cx) < 8 * sigma
        image[near] += flux * np.exp(
            -((y[near] - cy) ** 2 + (x[near] - cx) ** 2) / (2 * sigma**2)
        ) / (2 * np.pi * sigma**2)  # fmt: skip
    return image


def to_bytes(*hdus):
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


# -- Pan-STARRS ----------------------------------------------------------------------------------


def ps1_header(wcs, exposure, asinh):
    """Cards of a stack: the matrix in an old draft's cards, hierarchical cards, the asinh scale."""
    header = fits.Header()
    for i, name in ((0, "1"), (1, "2")):
        header[f"CTYPE{name}"] = wcs.wcs.ctype[i]
        header[f"CRVAL{name}"] = wcs.wcs.crval[i]
        header[f"CRPIX{name}"] = wcs.wcs.crpix[i]
        header[f"CDELT{name}"] = abs(wcs.wcs.cdelt[i])
    header["PC001001"], header["PC001002"] = -1.0, 0.0
    header["PC002001"], header["PC002002"] = 0.0, 1.0
    header["EXPTIME"] = exposure
    header["HIERARCH CELL.GAIN"] = 1.05
    header["HIERARCH CELL.SATURATION"] = 1e7
    header["HIERARCH FPA.ZP"] = 25.0
    if asinh:
        header["BOFFSET"], header["BSOFTEN"] = asinh
    return header


def asinh_scale(counts, boffset, bsoften):
    """Counts as the archive stores them: 2.5 log10 of an asinh."""
    return 2.5 / np.log(10) * np.arcsinh((counts - boffset) / (2 * bsoften))


def ps1_plane(values, header, bad=None):
    """A compressed 16-bit plane, with BSCALE, BZERO and BLANK."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    scale = max(high - low, 1e-6) / 60000
    zero = (low + high) / 2
    raw = np.rint((values - zero) / scale).astype(np.int16)
    if bad is not None:
        raw[bad] = -32768
    hdu = fits.CompImageHDU(raw, header, compression_type="RICE_1")
    hdu.header["BSCALE"], hdu.header["BZERO"], hdu.header["BLANK"] = scale, zero, -32768
    return hdu


def ps1_cell(stars, wcs, shape, *, exposure=900.0, noise=5.0, bits=None, cutout=False, seed=0):
    """Bytes of stack, stack.mask and stack.wt; star fluxes in counts a second."""
    rng = np.random.default_rng(seed)
    counts = exposure * draw(wcs, shape, stars, PS1_SCALE) + rng.normal(0, noise, shape)
    variance = np.full(shape, noise**2)
    asinh = (2.2, 95.4)
    bits = np.zeros(shape, np.uint16) if bits is None else bits
    blank = (bits & 1) != 0
    stored = asinh_scale(counts, *asinh)
    if cutout:  # fitscut: plain images of floats, the scale still in the header
        stored[blank] = np.nan
        return {
            "stack": to_bytes(fits.PrimaryHDU(stored.astype("f4"), ps1_header(wcs, exposure, asinh))),
            "stack.mask": to_bytes(fits.PrimaryHDU(bits.astype("f4"), ps1_header(wcs, exposure, None))),
            "stack.wt": to_bytes(fits.PrimaryHDU(variance.astype("f4"), ps1_header(wcs, exposure, None))),
        }
    mask = fits.CompImageHDU(bits, ps1_header(wcs, exposure, None), compression_type="RICE_1")
    return {
        "stack": to_bytes(fits.PrimaryHDU(), ps1_plane(stored, ps1_header(wcs, exposure, asinh), blank)),
        "stack.mask": to_bytes(fits.PrimaryHDU(), mask),
        "stack.wt": to_bytes(fits.PrimaryHDU(), ps1_plane(variance, ps1_header(wcs, exposure, None))),
    }


def ps1_name(projection, cell, band, kind):
    end = {"stack": "", "stack.mask": ".mask", "stack.wt": ".wt"}[kind]
    stem = f"rings.v3.skycell.{projection:04d}.{cell:03d}.stk.{band}.unconv{end}.fits"
    return f"/rings.v3.skycell/{projection:04d}/{cell:03d}/{stem}"


def ps1_listing(cells, band):
    """The archive's list of files, of the nearest of cells {(projection, cell): (ra, dec)}."""

    def answer(query):
        ra, dec = float(query["ra"]), float(query["dec"])
        lines = ["projcell subcell ra dec filter mjd type filename shortname badflag"]
        if cells:
            (p, c), _ = min(cells.items(), key=lambda item: np.hypot(item[1][0] - ra, item[1][1] - dec))
            for kind in query["type"].split(","):
                name = ps1_name(p, c, band, kind)
                short = name.rpartition("/")[2]
                lines.append(f"{p} {c} {ra} {dec} {band} 0.0 {kind} {name} {short} 0")
        return 200, ("\n".join(lines) + "\n").encode()

    return answer


# -- Legacy Survey -------------------------------------------------------------------------------


def ls_bricks(rows):
    """The table of bricks {name: (ra, dec)}, gzipped."""
    table = Table(
        {
            "BRICKNAME": np.array(list(rows), "S8"),
            "BRICKID": np.arange(len(rows), dtype=np.int32),
            "RA": np.array([ra for ra, _ in rows.values()]),
            "DEC": np.array([dec for _, dec in rows.values()]),
        }
    )
    buffer = io.BytesIO()
    table.write(buffer, format="fits")
    return gzip.compress(buffer.getvalue())


def ls_brick(stars, wcs, shape, *, noise=0.005, bits=None, uncovered=None, seed=0):
    """Bytes of image, invvar and maskbits of a brick; fluxes in nanomaggies."""
    flux = draw(wcs, shape, stars, LS_SCALE) + np.random.default_rng(seed).normal(0, noise, shape)
    inverse = np.full(shape, noise**-2)
    if uncovered is not None:
        flux[uncovered], inverse[uncovered] = 0.0, 0.0
    header = wcs.to_header()
    bits = np.zeros(shape, np.int32) if bits is None else bits

    def packed(data, **options):
        return to_bytes(fits.PrimaryHDU(), fits.CompImageHDU(data, header, **options))

    fine = {"compression_type": "RICE_1", "quantize_level": 64.0}
    return {
        "image": packed(flux.astype("f4"), **fine),
        "invvar": packed(inverse.astype("f4"), compression_type="GZIP_1", quantize_level=0.0),
        "maskbits": packed(bits.astype("i4"), compression_type="RICE_1"),
    }


# -- hips2fits -----------------------------------------------------------------------------------


def hips_answer(stars, *, known="CDS/P/Test/r", asinh=False, noise=0.0, saturation=np.inf, coarse=1):
    """What hips2fits sends: the sky on the grid that the query describes, or JSON that says why not.

    The survey's own pixels are ``coarse`` asked ones along an edge, and the nearest one is sent.
    """

    def answer(query):
        if query["hips"] != known:
            reason = {"title": "Bad Request", "description": f"HiPS {query['hips']} is not known"}
            return 400, json.dumps(reason).encode()
        shape = int(query["height"]), int(query["width"])
        cards = json.loads(query["wcs"])
        assert (cards["NAXIS2"], cards["NAXIS1"]) == shape
        wcs = WCS(fits.Header(cards))
        pixel = abs(np.linalg.det(wcs.pixel_scale_matrix)) ** 0.5 * 3600
        # a HiPS keeps surface brightness: values are those of the survey's own pixels, here 1 arcsec
        flux = np.minimum(draw(wcs, shape, stars, pixel, fwhm=2.0) / pixel**2, saturation)
        flux += np.random.default_rng(0).normal(0, noise, shape) if noise else 0
        if asinh:
            flux = np.arcsinh(flux / 2) / (0.4 * np.log(10))
        y, x = (np.arange(n) // coarse * coarse for n in shape)
        flux = flux[np.ix_(y, x)]
        return 200, to_bytes(fits.PrimaryHDU(flux.astype("f4"), wcs.to_header()))

    return answer
