"""Runs in a Python of its own that has the peers: times them on a pair of images, prints seconds and chi2.

``python peers.py NAME PAIR.npz``; NAME is sfft (Hu et al.'s, CPU) or stdpipe.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def by_sfft(pair):
    """The authors' SFFT on one thread, with masks filled by the median as its packets expect."""
    from astropy.io import fits
    from sfft.CustomizedPacket import Customized_Packet

    folder = Path(sys.argv[2]).parent
    paths = [str(folder / f"{name}.fits") for name in ("ref", "sci", "mref", "msci")]
    bad = pair["mask"] | pair["template_mask"]
    for path, image in zip(paths, (pair["template"], pair["image"]) * 2, strict=True):
        fits.writeto(path, np.where(bad, np.median(image), image).astype(float), overwrite=True)

    def once():
        found = Customized_Packet.CP(
            *paths, ForceConv="REF", GKerHW=3, KerPolyOrder=2, BGPolyOrder=2, ConstPhotRatio=False,
            BACKEND_4SUBTRACT="Numpy", NUM_CPU_THREADS_4SUBTRACT=1, VERBOSE_LEVEL=0,
        )  # fmt: skip
        # its arrays run [x, y]
        return found[1].T

    return once


def by_stdpipe(pair):
    """STDPipe's run_sfft with its noise model."""
    from stdpipe.subtraction import run_sfft

    def once():
        found = run_sfft(
            pair["image"], pair["template"], mask=pair["mask"], template_mask=pair["template_mask"], err=True,
            template_err=True, image_gain=float(pair["gain"]), template_gain=float(pair["template_gain"]),
            get_noise=True,
        )  # fmt: skip
        return found[0]

    return once


def main():
    name, path = sys.argv[1:3]
    pair = dict(np.load(path))
    once = {"sfft": by_sfft, "stdpipe": by_stdpipe}[name](pair)
    if name == "sfft":
        once()  # compiles
    started = time.process_time()
    difference = once()
    seconds = time.process_time() - started
    chi2 = float(np.nanmean((difference / pair["error"])[pair["star"]] ** 2))
    sys.stdout.write("\n" + json.dumps({"seconds": seconds, "chi2": chi2}) + "\n")


main()
