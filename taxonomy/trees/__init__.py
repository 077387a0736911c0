"""Shapes by the module trees of models: an Inventory and a config in, a ModelShape out.

`tree_shape` reads layers, attention, MLPs and experts by the roles of their modules, and
`tree_mixers` the other mixers of tokens.
"""
