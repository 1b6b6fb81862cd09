"""benchbd: the benchmark of backdoor attacks on, and defenses of, self-supervised image encoders.

Everything a plugin needs is imported from here, and so are the commands as functions: ``plan``, ``run``, ``detect``
and ``load_encoder``. ``__init__.pyi`` lists the names. Each is loaded on first use, so that ``benchbd --help`` and the
commands that only read records start without torch.
"""

from __future__ import annotations

import lazy_loader

from benchbd._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
