"""Readers and synthetic data sets by name, and data of one's own by any other."""

import inspect
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from corelens.data.readers.base import Samples
from corelens.data.readers.mlvu import mlvu
from corelens.data.readers.mmdocir import mmdocir
from corelens.data.readers.mmlongbench import mmlongbench
from corelens.data.readers.mmlongbench_doc import mmlongbench_doc
from corelens.data.readers.own_data import own_data
from corelens.data.readers.refcocog import refcocog
from corelens.data.readers.videomme import videomme
from corelens.data.readers.vidstg import vidstg
from corelens.data.synthetic.charts import charts
from corelens.data.synthetic.documents import documents
from corelens.data.synthetic.haystacks import haystacks
from corelens.data.synthetic.photographs import photographs
from corelens.errors import check_choice

READERS = {
    "refcocog": refcocog,
    "vidstg": vidstg,
    "mmdocir": mmdocir,
    "mmlongbench": mmlongbench,
    "mmlongbench-doc": mmlongbench_doc,
    "mlvu": mlvu,
    "videomme": videomme,
}
"""Functions that read a data set from a folder or from the Hub."""

SYNTHETIC = {"documents": documents, "charts": charts, "photographs": photographs, "haystacks": haystacks}
"""Functions that draw a number of samples from a seed."""


def load(name: str, *where: Any, **options: Any) -> Samples:
    """Load the samples of a data set or world by name, or data of your own under any other name.

    Args:
        name: A name of `READERS` or `SYNTHETIC`; or, of data of your own, their name in results.
        where: The folder or Hub id of a data set; of a world, how many samples and their seed; of data of your own,
            their file or folder, for `own_data`.
        options: Further arguments of its reader; and, for every reader, `options_in_question`: 1 counts answer options
            and format instructions as the question, as `Samples.options_in_question` does, and 0 does not.

    Raises:
        ValueError: If there is neither such a name nor such a file, or the reader does not take these options.

    Examples:
        >>> [sample.answer for sample in load("charts", 2, seed=0)]
        ['Seoul', '80']
    """
    known = READERS | SYNTHETIC
    if name not in known and not (
        where and isinstance(where[0], str | PathLike) and Path(where[0]).expanduser().exists()
    ):
        place = f" There is no file or folder {str(where[0])!r} of your own, either." if where else ""
        raise ValueError(
            f"{name!r} is not a data set of corelens; these are {', '.join(known)}. The pictures for the shipped "
            f"models are in corelens.toy.{place}"
        )
    read = known.get(name) or partial(own_data, name=name)
    options_in_question = 0 if name in SYNTHETIC else options.pop("options_in_question", 0)
    check_choice("options_in_question", options_in_question, (0, 1))
    try:
        inspect.signature(read).bind(*where, **options)
    except TypeError as cause:
        raise ValueError(f"{name}: {cause}; it takes {inspect.signature(read)}.") from cause
    samples = read(*where, **options)
    return samples.options_in_question() if options_in_question else samples


def settings(name: str) -> list[str]:
    """Names of the options that `load` takes for a data set; none for drawn ones."""
    if name in SYNTHETIC:
        return []
    _, *names = inspect.signature(READERS.get(name, own_data)).parameters
    return [*(setting for setting in names if setting != "name"), "options_in_question"]
