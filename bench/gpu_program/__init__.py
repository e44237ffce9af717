"""Fifteen minutes of a GPU, used well: one program that measures, sets the record, searches and trains on.

    python -m bench gpu-program --out FOLDER --seconds 540

It runs its parts one after another, each in a process of its own, the most valuable first. A part prints its results as
JSON lines; the program keeps them in FOLDER the moment they come. A part that fails or hangs costs its own share of the
time and no more. The program ends within its seconds.

`python -m bench record FOLDER` turns what came back into records, tables and figures.
"""
