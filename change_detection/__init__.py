"""Outlines and what became of them: pixels become glaciers, glaciers become change.

Import law: ``change_detection`` imports ``catalog`` only; predictions are read from the store.
"""
