"""See which attention heads of a multimodal LLM fetch the visual evidence, and test whether it matters.

The public names are listed in `__init__.pyi`; each loads on first use, so that importing corelens is cheap and changes
nothing in the process.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
