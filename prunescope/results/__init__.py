"""The results of the commands and of the Python API, a file for each.

A result is declared once, by a class that adds to a struct of the schema how the result of a
request is computed (`compute`), what is printed (`__rich__`), its table and its files. A function
of prunescope/api.py and a command of prunescope/cli.py name that class and repeat nothing of it.
"""
