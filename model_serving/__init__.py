"""From cube to calibrated class probability: the network, its ensemble, and how it is served.

Import law: ``model_serving`` imports ``catalog`` only.
"""
