"""Samples: questions, their pictures, answers and evidence; readers of data sets, synthetic data and scoring.

The names are listed in `__init__.pyi`; each loads on first use, so that finished results are read without a model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
