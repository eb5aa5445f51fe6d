"""Tests of the five claims of arXiv 2606.05843, each with a verdict that can be negative; one module per claim.

The names are listed in `__init__.pyi`; each loads on first use, so that finished studies are read without a model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
