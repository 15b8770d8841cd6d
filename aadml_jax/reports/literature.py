"""MAP of other methods as the literature is said to give it: quoted, never measured here.

The figures come second hand and from memory, and were not compared with the papers. Whoever prints
them must say so, as the titles of `literature_table` do. Three things to know beside them:

- The level of chance quoted for AVE, .126, is what prefix MAP (the running average precision,
  averaged over every cut-off) gives for 15 classes; standard MAP gives about .100. So the figures
  on AVE, and perhaps all, suggest that metric. This library's MAP is the standard one.
- Splits, features and folds differ between the papers.
- The row of AADML is its authors' own result, which this library has not reproduced.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from aadml_jax.reports.tables import Table


class QuotedMap(NamedTuple):
    """MAP in both directions and the mean that was quoted with them, each in [0, 1]."""

    audio_to_visual: float
    visual_to_audio: float
    mean: float


_VEGAS = {
    "random": (0.110, 0.109, 0.109),
    "CCA": (0.332, 0.327, 0.330),
    "KCCA": (0.288, 0.273, 0.281),
    "DCCA": (0.478, 0.457, 0.468),
    "C-CCA": (0.711, 0.704, 0.708),
    "C-DCCA": (0.722, 0.716, 0.719),
    "UGACH": (0.182, 0.179, 0.181),
    "AGAH": (0.578, 0.568, 0.573),
    "UCAL": (0.446, 0.436, 0.441),
    "ACMR": (0.465, 0.442, 0.454),
    "DSCMR": (0.732, 0.721, 0.727),
    "CLIP": (0.473, 0.617, 0.545),
    "TNN-C-CCA": (0.751, 0.738, 0.745),
    "CCTL": (0.766, 0.765, 0.766),
    "EICS": (0.797, 0.779, 0.788),
    "VideoAdviser": (0.825, 0.819, 0.822),
    "MSNSCA": (0.866, 0.865, 0.866),
    "TLCA (two-stage)": (0.822, 0.838, 0.830),
    "AADML": (0.901, 0.891, 0.896),
}
_AVE = {
    "random": (0.127, 0.124, 0.126),
    "CCA": (0.190, 0.189, 0.190),
    "KCCA": (0.133, 0.135, 0.134),
    "DCCA": (0.221, 0.223, 0.222),
    "C-CCA": (0.228, 0.226, 0.227),
    "C-DCCA": (0.230, 0.227, 0.229),
    "UGACH": (0.165, 0.159, 0.162),
    "AGAH": (0.200, 0.196, 0.198),
    "UCAL": (0.153, 0.150, 0.152),
    "ACMR": (0.162, 0.159, 0.160),
    "DSCMR": (0.314, 0.256, 0.285),
    "CLIP": (0.129, 0.161, 0.145),
    "TNN-C-CCA": (0.253, 0.258, 0.256),
    "CCTL": (0.328, 0.267, 0.298),
    "EICS": (0.337, 0.279, 0.308),
    "MSNSCA": (0.323, 0.343, 0.333),
    "TLCA (two-stage)": (0.410, 0.451, 0.431),
    "AADML": (0.890, 0.883, 0.887),
}

MAP_AS_QUOTED: Mapping[tuple[str, str], QuotedMap] = MappingProxyType(
    {
        (method, dataset): QuotedMap(*scores)
        for dataset, methods in (("VEGAS", _VEGAS), ("AVE", _AVE))
        for method, scores in methods.items()
    }
)
"""MAP by method and data set ("VEGAS" or "AVE")."""


def literature_table(dataset: str) -> Table:
    """The quoted figures of one data set, in a table that says what they are.

    Args:
      dataset: "VEGAS" or "AVE", in any case.

    Raises:
      ValueError: if no figures are known for it.
    """
    rows = [
        [method, *scores]
        for (method, where), scores in MAP_AS_QUOTED.items()
        if where == dataset.upper()
    ]
    if not rows:
        raise ValueError(f"no quoted figures for data set {dataset!r}; there are VEGAS and AVE")
    note = "Quoted second hand, not verified, and not measured by this library."
    if dataset.upper() == "AVE":
        note += (
            " The quoted level of chance is that of prefix MAP, so these are probably not figures "
            "of standard MAP."
        )
    return Table(
        f"MAP on {dataset.upper()} as quoted from the literature (unverified)",
        ["method", "audio→visual", "visual→audio", "mean"],
        rows,
        note,
    )
