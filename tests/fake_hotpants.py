"""Stands in for the HOTPANTS program in tests: writes its layers, or misbehaves on demand."""

import json
import os
import sys
import time

import numpy as np

BLOCK = 2880


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


def write(path, layers, **keywords):
    """The layers as a primary image and extensions, of doubles."""
    with open(path, "wb") as file:
        for i, layer in enumerate(layers):
            first = [("SIMPLE", "T")] if i == 0 else [("XTENSION", "'IMAGE   '")]
            cards = [
                *first,
                ("BITPIX", "-64"),
                ("NAXIS", "2"),
                ("NAXIS1", layer.shape[1]),
                ("NAXIS2", layer.shape[0]),
            ]
            cards += [("EXTEND", "T"), *keywords.items()] if i == 0 else [("PCOUNT", "0"), ("GCOUNT", "1")]
            text = "".join(f"{name:<8}= {value!s:>20}".ljust(80) for name, value in cards) + "END".ljust(80)
            data = layer.astype(">f8").tobytes()
            file.write(text.ljust(-(-len(text) // BLOCK) * BLOCK).encode())
            file.write(data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0"))


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
    """The template with the best kernel (Gaussians times polynomials) and sky, and the kernel's sum."""
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
    return (design @ found).reshape(image.shape), float(found[:-1] @ [k.sum() for k in kernels])


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
    image, template = (read(given[name][0]) for name in ("inim", "tmplim"))
    bad = np.add(*(read(given[name][0]) for name in ("imi", "tmi"))) != 0
    noise = np.hypot(read(given["ini"][0]), read(given["tni"][0]))
    convolved, total = matched(image, template, ~bad, noise, [float(s) for s in given["ng"][2::2]])
    difference = image - convolved
    difference[:3] = 1e-30
    noise[:3] = 1e-30
    layers = [difference, convolved, difference / noise, noise]
    write(given["outim"][0], layers[:1] if how == "one layer" else layers, KSUM00=total)


main()
