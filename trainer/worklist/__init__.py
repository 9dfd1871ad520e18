"""Owns studies that wait for a model and what becomes of them: the model that stays loaded, the folder they wait in,
the process that reads them.

It never listens on a port and never parses a command line: it is told what came, and by whom it is asked.
"""
