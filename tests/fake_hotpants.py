"""Stands in for the HOTPANTS program in tests: writes its layers, or misbehaves on demand.

What it does with masks, edges and its output file is what the program's source does (5.1.11): of a mask only
bit 0x80 spreads with the kernel; along the edge the difference is 1e-30 and the noise is not; a bad pixel's
noise is 0; single precision; a table of the kernel after the images. A path that is too long is a crash.
"""

import json
import os
import sys
import time

import numpy as np

BLOCK = 2880
BAD_INPUT, FILL, LONGEST_PATH = 0x80, 1e-30, 250


def read(path):
    """Image of a simple FITS file; astropy would take longer to import than all the rest."""
    with open(path, "rb") as file:
        raw = file.read()
    end = 0
    cards = {}
    while "END" not in cards:
        for i in range(end, end + BLOCK, 80):
            card = raw[i : i + 80].decode()
            cards[card[:8].strip()] = card[10:].split("/")[0].strip()
        end += BLOCK
    shape = int(cards["NAXIS2"]), int(cards["NAXIS1"])
    kind = {"-32": ">f4", "16": ">i2"}[cards["BITPIX"]]
    values = np.frombuffer(raw, kind, shape[0] * shape[1], end).reshape(shape)
    return values + float(cards.get("BZERO", 0))


def unit(cards, data):
    """Header and data, each filled up to whole blocks."""
    text = "".join(f"{name:<8}= {value!s:>20}".ljust(80) for name, value in cards) + "END".ljust(80)
    text, size = text.ljust(-(-len(text) // BLOCK) * BLOCK), -(-len(data) // BLOCK) * BLOCK
    return text.encode() + data.ljust(size, b"\0")


def write(path, layers, **keywords):
    """The layers as a primary image and extensions, and a table of the kernel as the program titles it."""
    with open(path, "wb") as file:
        for i, layer in enumerate(layers):
            first = ("SIMPLE", "T") if i == 0 else ("XTENSION", "'IMAGE   '")
            shape = [("NAXIS", "2"), ("NAXIS1", layer.shape[1]), ("NAXIS2", layer.shape[0])]
            last = [("EXTEND", "T"), *keywords.items()] if i == 0 else [("PCOUNT", "0"), ("GCOUNT", "1")]
            file.write(unit([first, ("BITPIX", "-32"), *shape, *last], layer.astype(">f4").tobytes()))
        cards = [("XTENSION", "'BINTABLE'"), ("BITPIX", "8"), ("NAXIS", "2"), ("NAXIS1", "8")]
        cards += [
            ("NAXIS2", "4"),
            ("PCOUNT", "0"),
            ("GCOUNT", "1"),
            ("TFIELDS", "1"),
            ("TTYPE1", "'Region0 '"),
        ]
        file.write(unit([*cards, ("TFORM1", "'D10.8   '")], np.arange(4, dtype=">f8").tobytes()))


def options(arguments):
    found, name = {}, None
    for word in arguments:
        if word.startswith("-") and not word.lstrip("-").replace(".", "").replace("e-", "").isdigit():
            name = word[1:]
            found[name] = []
        else:
            found[name].append(word)
    return found


def matched(image, template, good, noise, widths):
    """The template with the best kernel (Gaussians times polynomials) and sky; the kernel, and its sum."""
    edge = 12
    padded = np.pad(template, edge, mode="edge")
    v, u = (np.fft.fftfreq(n, 1 / n) for n in padded.shape)
    kernels = [(u == 0) * (v == 0)[:, None]]
    for width in widths:
        bell = np.exp(-(u**2 + v[:, None] ** 2) / (2 * width**2))
        bell /= bell.sum()
        kernels += [bell, bell * u**2, bell * v[:, None] ** 2, bell * u * v[:, None]]
    wave, inside = np.fft.rfft2(padded), slice(edge, -edge)
    columns = [np.fft.irfft2(wave * np.fft.rfft2(k), padded.shape)[inside, inside].ravel() for k in kernels]
    design = np.stack([*columns, np.ones(image.size)], axis=1)
    use = good.ravel()
    for _ in range(3):
        weight = use / noise.ravel()
        found = np.linalg.lstsq(design * weight[:, None], image.ravel() * weight, rcond=1e-9)[0]
        use = good.ravel() & (np.abs(image.ravel() - design @ found) < 5 * noise.ravel())
    kernel = np.tensordot(found[:-1], kernels, axes=1)
    return (design @ found).reshape(image.shape), kernel, float(kernel.sum())


def seen(kernel, flagged):
    """Which share of the kernel lies on flagged pixels, each pixel's."""
    edge = 12
    padded = np.pad(flagged.astype(float), edge)
    size = np.abs(kernel)
    share = np.fft.irfft2(np.fft.rfft2(padded) * np.fft.rfft2(size / size.sum()), padded.shape)
    return share[edge:-edge, edge:-edge]


def main():
    how = os.environ.get("FAKE_HOTPANTS", "works")
    given = options(sys.argv[1:])
    log = os.environ.get("FAKE_HOTPANTS_LOG")
    if log:
        with open(log, "w") as file:
            json.dump(given, file)
    if how.startswith("crashes once"):
        try:
            os.remove(how.removeprefix("crashes once "))
            how = "crashes"
        except FileNotFoundError:
            how = "works"
    if how == "crashes":
        sys.stderr.write("could not allocate stamps\n")
        os.abort()
    if how == "fails":
        sys.stderr.write("no good stamps found\nexiting\n")
        sys.exit(3)
    if how == "hangs":
        time.sleep(600)
    if how == "writes nothing":
        return
    if max(len(word) for word in sys.argv[1:]) > LONGEST_PATH:
        os.abort()
    image, template = (read(given[name][0]) for name in ("inim", "tmplim"))
    flags = [read(given[name][0]).astype(int) for name in ("imi", "tmi")]
    noise = np.hypot(read(given["ini"][0]), read(given["tni"][0]))
    widths = [float(s) for s in given["ng"][2::2]]
    convolved, kernel, total = matched(image, template, (flags[0] | flags[1]) == 0, noise, widths)
    difference = image - convolved
    without = ((flags[0] & BAD_INPUT) != 0) | (seen(kernel, (flags[1] & BAD_INPUT) != 0) > 0.01)
    difference[without], noise[without] = FILL, 0.0
    edge, inside = int(given["r"][0]), np.zeros(image.shape, bool)
    inside[edge:-edge, edge:-edge] = True
    difference[~inside] = FILL
    scaled = np.divide(difference, noise, out=np.full(image.shape, FILL), where=noise > 0)
    layers = [difference, convolved, scaled, noise]
    which = "'IMAGE   '" if given["c"] == ["i"] else "'TEMPLATE'"
    write(given["outim"][0], layers[:1] if how == "one layer" else layers, KSUM00=total, CONVOL00=which)


main()
