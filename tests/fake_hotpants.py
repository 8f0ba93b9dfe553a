"""Stands in for the HOTPANTS program in tests: writes its layers, or misbehaves on demand."""

import json
import os
import sys
import time

import numpy as np

BLOCK = 2880


def read(path):
    """Image of a simple FITS file of floats; astropy would take longer to import than all the rest."""
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
    return np.frombuffer(raw, ">f4", shape[0] * shape[1], end).reshape(shape).astype(float)


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
    noise = np.hypot(read(given["ini"][0]), read(given["tni"][0]))
    convolved = template * np.median(image / template)
    difference = image - convolved
    difference[:3] = 1e-30
    noise[:3] = 1e-30
    layers = [difference, convolved, difference / noise, noise]
    write(given["outim"][0], layers[:1] if how == "one layer" else layers, KSUM00=0.9)


main()
