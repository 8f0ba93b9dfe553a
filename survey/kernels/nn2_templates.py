"""Light curves of one template each, and how NN2 compares with every one of them.

Barris et al. 2005, section 3: the light curve with image i as the template is row i of the matrix of
differences. Tables 1 and 2 of the paper are `TemplateComparison` for its own simulation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ks_2samp

Array = NDArray[np.float64]


def single_template(
    difference: ArrayLike, error: ArrayLike, template: int | None = None
) -> tuple[Array, Array]:
    """Light curves by subtracting one image from all others.

    Parameters
    ----------
    difference, error : array (..., N, N)
        ``difference[..., i, j] = V_j - V_i`` and 1-sigma errors, as for `survey.kernels.nn2.solve_nn2`. Where
        only the reverse of a pair was measured, its negative is taken; where both were, their mean.
    template : int, optional
        Image that is subtracted; by default each in turn.

    Returns
    -------
    flux, error : array (..., N) or (..., N, N) with the template first
        Flux above the template's. The template's own is 0 by definition, with an error of 0.

    Examples
    --------
    >>> flux = np.array([1.0, 4.0, -5.0])
    >>> single_template(flux - flux[:, None], np.ones((3, 3)), 1)[0].tolist()
    [-3.0, 0.0, -9.0]
    """
    a, e = np.broadcast_arrays(np.asarray(difference, float), np.asarray(error, float))
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"difference and error must be (..., N, N), not {a.shape}")
    good = np.isfinite(a) & np.isfinite(e) & (e > 0)
    count = good.astype(float) + np.swapaxes(good, -1, -2)
    with np.errstate(invalid="ignore", divide="ignore"):
        a, e2 = np.where(good, a, 0.0), np.where(good, e, 0.0) ** 2
        flux = (a - np.swapaxes(a, -1, -2)) / count
        sigma = np.sqrt((e2 + np.swapaxes(e2, -1, -2)) / count)
    own = np.arange(a.shape[-1])
    flux[..., own, own] = sigma[..., own, own] = 0.0
    return (flux, sigma) if template is None else (flux[..., template, :], sigma[..., template, :])


def light_curve_rms(flux: ArrayLike, truth: ArrayLike = 0.0) -> Array:
    """Scatter of light curves (..., N) about the truth and a free constant; missing epochs do not count."""
    residual = np.asarray(flux, float) - truth
    count = np.isfinite(residual).sum(axis=-1)
    residual = np.where((count > 1)[..., None], residual, 0.0)
    return np.where(count > 1, np.nanstd(residual, axis=-1), np.nan)


@dataclass(frozen=True)
class TemplateComparison:
    """NN2 beside every single template, for a batch of objects.

    Attributes
    ----------
    nn2_rms : array (objects,)
    template_rms : array (objects, N)
        Scatter with each image as the template, its own zero among the epochs.
    """

    nn2_rms: Array
    template_rms: Array

    @property
    def median_rms(self) -> Array:
        """Median scatter with each template, shape (N,)."""
        return np.nanmedian(self.template_rms, axis=0)

    @property
    def ratio(self) -> Array:
        """Median over objects of NN2's scatter over each template's, shape (N,)."""
        return np.nanmedian(self.nn2_rms[:, None] / self.template_rms, axis=0)

    @property
    def better(self) -> Array:
        """Part of the objects whose scatter is smaller with NN2, shape (N,)."""
        return np.mean(self.nn2_rms[:, None] < self.template_rms, axis=0)

    def kolmogorov_smirnov(
        self, template: int | None = None, objects: ArrayLike | None = None
    ) -> tuple[float, float]:
        """K-S statistic and probability that NN2's scatter is distributed like a template's.

        Parameters
        ----------
        template : int, optional
            One template, or by default all pooled.
        objects : index array, optional
            Some of the objects.
        """
        chosen = slice(None) if objects is None else np.asarray(objects)
        other = self.template_rms[chosen] if template is None else self.template_rms[chosen, template]
        found = ks_2samp(_finite(self.nn2_rms[chosen]), _finite(other), method="asymp")
        return float(found.statistic), float(found.pvalue)

    def rows(self) -> list[dict[str, float]]:
        """One row a template: a table of all of this."""
        tests = [self.kolmogorov_smirnov(k) for k in range(self.template_rms.shape[1])]
        return [
            {
                "template": k,
                "median_rms": float(self.median_rms[k]),
                "ratio": float(self.ratio[k]),
                "better": float(self.better[k]),
                "ks_statistic": tests[k][0],
                "ks_probability": tests[k][1],
            }
            for k in range(len(tests))
        ]


def compare_templates(
    flux: ArrayLike, difference: ArrayLike, error: ArrayLike, truth: ArrayLike = 0.0
) -> TemplateComparison:
    """Scatter of NN2 light curves and of those from every single template.

    Parameters
    ----------
    flux : array (objects, N)
        NN2's, of `survey.kernels.nn2.solve_nn2`.
    difference, error : array (objects, N, N)
        What they were solved from.
    truth : array (objects, N), optional
        True fluxes; by default constant.

    Raises
    ------
    ValueError
        If the shapes do not belong together.
    """
    flux = np.asarray(flux, float)
    single = single_template(difference, error)[0]
    if flux.ndim != 2 or single.shape != (*flux.shape, flux.shape[1]):
        raise ValueError(
            f"flux (objects, N) and difference (objects, N, N) needed: {flux.shape}, {single.shape}"
        )
    expected = np.broadcast_to(np.asarray(truth, float), flux.shape)
    return TemplateComparison(light_curve_rms(flux, expected), light_curve_rms(single, expected[:, None, :]))


def _finite(values: Array) -> Array:
    values = values.ravel()
    return values[np.isfinite(values)]
