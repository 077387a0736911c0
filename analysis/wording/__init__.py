"""The words of every notice: the only room that knows sentences of notes, warnings and caveats.

In: a Notice or another record of the schema that says why two sides differ. Out: its sentence, in
plain English with units. A file a theme; each has a table `WORDS`: kind -> template or function.
Exports: `sentence.sentence`.
"""
