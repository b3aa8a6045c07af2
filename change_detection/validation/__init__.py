"""Whether an inventory keeps the rules of RGI 7.0: every rule, and every place where one is broken.

Rooms: ``rules`` (what the rules are, what a finding is), ``layer`` (a product ready to be checked),
``attributes``, ``geometry``, ``products`` (complexes, intersects), ``tables`` (hypsometry, links)
and ``inventory`` (all of them). Pure: nothing is read or written here.
"""

from __future__ import annotations
