"""The conductor: settings, plan, receipts, executors and the command line.

Import law: ``inventory_engine`` imports the three stages; nothing imports ``inventory_engine``.
"""

__version__ = "0.1.0"
