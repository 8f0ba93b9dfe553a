"""deploy/STDPIPE.md: every name of ours that it gives is there, and no parameter of ours is forgotten."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import click
import pytest

PAGE = Path(__file__).parents[1] / "deploy" / "STDPIPE.md"
# Parameters that say where work runs, not what is done.
PLUMBING = {
    "survey.run.template.make_template": {"path", "name", "choice", "cluster", "client"},
    "survey.run.template_mosaic.Survey": {"server"},
    "survey.config.SubtractionSettings": {"timeout"},
    "survey.kernels.sfft.subtract_sfft": {"phase_x"},
    "survey.hotpants.subtract_hotpants": {"timeout"},
    "survey.kernels.zogy.subtract_zogy": {"grow"},
}


# What the functions of STDPipe's page on subtraction take, as its documentation lists them.
THEIRS = {
    "get_hips_image": "hips ra dec width height fov wcs shape header asinh normalize upscale "
    "get_header verbose",
    "mask_template": (
        "cat cat_saturation_mag cat_col_mag cat_col_mag_err cat_col_ra cat_col_dec cat_sr mask_nans "
        "mask_masked mask_photometric aper sn wcs dilate verbose _tmpdir"
    ),
    "get_survey_image": (
        "band ext survey wcs shape width height header reproject extra _cachedir _cache_downscale _tmpdir "
        "_workdir verbose"
    ),
    "run_sfft": (
        "image template mask template_mask err template_err image_gain template_gain kernel_shape "
        "kernel_poly_order bg_poly_order flux_poly_order flux_penalty ridge sigma_clip max_iter obj obj_size "
        "get_convolved get_scaled get_noise get_kernel verbose"
    ),
    "run_hotpants": (
        "image template mask template_mask err template_err extra image_fwhm template_fwhm image_gain "
        "template_gain rel_r rel_rss nx ny obj get_convolved get_scaled get_noise get_kernel get_header "
        "_tmpdir _workdir _exe verbose"
    ),
    "run_zogy": "image template mask template_mask err template_err image_psf template_psf",
}


def sections():
    """Our name in each heading, and what the right column of its table names."""
    for part in PAGE.read_text().split("\n### ")[1:]:
        title, _, body = part.partition("\n")
        rows = [line.strip("|").split(" | ") for line in body.splitlines() if line.startswith("| ")][1:]
        names = [re.findall(r"`([^`]+)`", row[1])[0] for row in rows if row[1].strip().startswith("`")]
        yield title.strip("`"), names


SECTIONS = dict(sections())


def parameters(name):
    """Names that a function takes, a class has, or a command offers."""
    if name.startswith("survey "):
        from survey.cli import main

        command = main.get_command(click.Context(main), name.split()[1])
        return {option for parameter in command.params for option in parameter.opts}
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    if attribute == "MatchingKernel":
        return {key for key, value in vars(found).items() if inspect.isfunction(value)}
    return set(inspect.signature(found).parameters)


def test_the_page_has_its_sections():
    assert len(SECTIONS) == 9
    assert all(len(names) >= 3 for names in SECTIONS.values())


@pytest.mark.parametrize("function", THEIRS)
def test_every_parameter_of_theirs_is_on_the_page(function):
    text = PAGE.read_text()
    left = " ".join(line.strip("|").split(" | ")[0] for line in text.splitlines() if line.startswith("| "))
    assert function in text
    assert set(THEIRS[function].split()) <= set(re.findall(r"[A-Za-z_]\w*", left))


@pytest.mark.parametrize("name", SECTIONS)
def test_every_name_on_the_page_is_in_the_code(name):
    assert set(SECTIONS[name]) <= parameters(name)


@pytest.mark.parametrize("name", [name for name in SECTIONS if name in PLUMBING])
def test_every_parameter_is_on_the_page(name):
    assert parameters(name) - PLUMBING[name] == set(SECTIONS[name])
