"""Data sets and worlds by their names."""

import inspect
from typing import Any

from corelens.data.readers.base import Samples
from corelens.data.readers.mlvu import mlvu
from corelens.data.readers.mmdocir import mmdocir
from corelens.data.readers.mmlongbench import mmlongbench
from corelens.data.readers.mmlongbench_doc import mmlongbench_doc
from corelens.data.readers.refcocog import refcocog
from corelens.data.readers.vidstg import vidstg
from corelens.data.synthetic.charts import charts
from corelens.data.synthetic.documents import documents
from corelens.data.synthetic.haystacks import haystacks
from corelens.data.synthetic.photographs import photographs

READERS = {
    "refcocog": refcocog,
    "vidstg": vidstg,
    "mmdocir": mmdocir,
    "mmlongbench": mmlongbench,
    "mmlongbench-doc": mmlongbench_doc,
    "mlvu": mlvu,
}
"""What reads a data set from a folder, or from the Hub."""

WORLDS = {"documents": documents, "charts": charts, "photographs": photographs, "haystacks": haystacks}
"""What draws so many samples from a seed."""


def load(name: str, *where: Any, **options: Any) -> Samples:
    """The samples of a data set or world that has a name.

    Args:
        name: A name of `READERS` or `WORLDS`.
        where: The folder or Hub id of a data set; of a world, how many samples and their seed.
        options: What else its reader takes.

    Raises:
        ValueError: If there is no such name, or the reader does not take these options.

    Examples:
        >>> [sample.answer for sample in load("charts", 2, seed=0)]
        ['Seoul', '80']
    """
    if name not in (known := READERS | WORLDS):
        raise ValueError(
            f"{name!r} is no data set that corelens knows; it knows {', '.join(known)}. The pictures of the shipped "
            f"models are drawn by corelens.toy."
        )
    try:
        inspect.signature(known[name]).bind(*where, **options)
    except TypeError as cause:
        raise ValueError(f"{name}: {cause}; it takes {inspect.signature(known[name])}.") from cause
    return known[name](*where, **options)
