"""What there is to look at: scenes become analysis-ready cubes.

Import law: ``catalog`` imports none of the other packages.
"""
