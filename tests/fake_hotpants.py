"""Stands in for the HOTPANTS program in tests: writes its layers, or misbehaves on demand."""

import json
import os
import sys
import time

import numpy as np
from astropy.io import fits


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
    image, template = (fits.getdata(given[name][0]).astype(float) for name in ("inim", "tmplim"))
    noise = np.hypot(fits.getdata(given["ini"][0]), fits.getdata(given["tni"][0])).astype(float)
    convolved = template * np.median(image / template)
    difference = image - convolved
    difference[:3] = 1e-30
    noise[:3] = 1e-30
    scaled = difference / noise
    hdus = [fits.PrimaryHDU(difference), *(fits.ImageHDU(layer) for layer in (convolved, scaled, noise))]
    hdus[0].header["KSUM00"] = 0.9
    if how == "one layer":
        hdus = hdus[:1]
    fits.HDUList(hdus).writeto(given["outim"][0])


main()
