"""Outputs of one Report. A report computes nothing: every number is in the model it is given."""
