"""Inner loops of a pass over blocks: polynomials, model and weights, the template's noise."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, fastmath={"contract"})
def block_terms(order, y0, x0, side, by_y, by_x, out):
    """Monomials u^i v^j by total degree at the pixels of a block; x and y run from -1 to 1 over the frame."""
    u = np.empty(side, out.dtype)
    for j in range(side):
        u[j] = by_x * (x0 + j) - 1
    for i in range(side):
        v = out.dtype.type(by_y * (y0 + i) - 1)
        first = i * side
        for j in range(side):
            out[0, first + j] = 1
        t = 1
        for d in range(1, order + 1):
            # u times all of the degree before, then v times its last
            for k in range(d):
                for j in range(side):
                    out[t + k, first + j] = u[j] * out[t - d + k, first + j]
            for j in range(side):
                out[t + d, first + j] = v * out[t - 1, first + j]
            t += d + 1


@njit(cache=True, nogil=True, fastmath={"contract"})
def template_noise(template_variance, squared, y, x0, line):
    """Variance that the convolved template brings to a line of pixels."""
    ky, kx = squared.shape
    side = len(line)
    line[:] = 0
    for r in range(ky):
        for c in range(0, kx, 4):  # four at a time: short loops cost more than sums
            k0, k1, k2, k3 = squared[r, c], squared[r, c + 1], squared[r, c + 2], squared[r, c + 3]
            near = template_variance[y + r, x0 + c : x0 + c + side + 3]
            for j in range(side):
                line[j] += k0 * near[j] + k1 * near[j + 1] + k2 * near[j + 2] + k3 * near[j + 3]


@njit(cache=True, nogil=True, fastmath={"contract"})
def finish_rows(rows, root, weighted):
    """Set the row of the background's constant; where ``weighted``, put the root of the weight into all."""
    n, m = rows.shape
    if not weighted:
        for p in range(m):
            rows[n - 1, p] = 1
        return
    for a in range(n - 1):
        for p in range(m):
            rows[a, p] *= root[p]
    for p in range(m):
        rows[n - 1, p] = root[p]


@njit(cache=True, nogil=True, fastmath={"contract"})
def weigh_block(
    image, variance, excluded, template_variance, squared, values, background, terms, y0, x0, photon, clip,
    fraction, model_error, bright, weighted, rows, right, weights, counts, peak, convolved, total, fit_mask,
):  # fmt: skip
    """Model, variance, clipping and weights of a block.

    Leaves terms times weighted residual in ``right`` and the brightest star pixel in ``peak``; where
    ``weighted``, the root of the weight is put into the rows instead, for their Gram matrix.
    """
    m = rows.shape[1]
    side = int(np.sqrt(m))
    nb = len(terms)
    ny, nx = image.shape
    peak[:] = 0
    height = min(side, ny - y0)
    width = min(side, nx - x0)
    noisy = template_variance.shape[0] > 1
    filling = convolved.shape[0] > 1
    # zero outside the image: rows are padded there
    root = np.zeros(m, rows.dtype)
    right[:] = 0
    weights[:] = 0
    line = np.zeros(side, rows.dtype)
    for i in range(height):
        y = y0 + i
        if noisy:
            template_noise(template_variance, squared, y, x0, line)
        for j in range(width):
            x, p = x0 + j, i * side + j
            flux = rows.dtype.type(0)
            sky = rows.dtype.type(0)
            if len(background):
                for b in range(nb):
                    flux += values[b, p] * terms[b, p]
                    sky += background[b] * terms[b, p]
            source = max(flux, rows.dtype.type(0))
            noise = variance[y, x] + line[j] + photon * source
            residual = image[y, x] - flux - sky
            limit = clip * np.sqrt(noise + (max(fraction, model_error) * flux) ** 2)
            out_of_fit = excluded[y, x]
            # outliers too: where the model misses all stars' cores, these are what must be counted
            if not out_of_fit and flux > peak[2] and flux * flux > bright * bright * noise:
                peak[0], peak[1], peak[2] = residual, noise, flux
            if not out_of_fit and abs(residual) > limit:
                out_of_fit = True
                counts[1] += 1
            if filling:
                convolved[y, x] = flux + sky
                total[y, x] = noise
                fit_mask[y, x] = out_of_fit
            if out_of_fit:
                continue
            counts[0] += 1
            weight = 1 / (noise + (model_error * flux) ** 2)
            weights[p] = weight
            if weighted:
                weight = np.sqrt(weight)
            root[p] = weight
            for b in range(nb):
                right[b, p] = terms[b, p] * residual * weight
    finish_rows(rows, root, weighted)


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def noise_sums(template_variance, weights, y0, x0, ny, nx, out):
    """Sum over a block of weight(p) template_variance(p - a), for every kernel pixel a."""
    ky, kx = out.shape
    side = int(np.sqrt(len(weights)))
    height, width = min(side, ny - y0), min(side, nx - x0)
    for r in range(ky):
        for c in range(kx):
            total = 0.0
            for i in range(height):
                near = template_variance[y0 + i + r, x0 + c : x0 + c + width]
                line = weights[i * side : i * side + width]
                s = weights.dtype.type(0)
                for j in range(width):
                    s += near[j] * line[j]
                total += s
            out[ky - 1 - r, kx - 1 - c] = total
