"""The names of other libraries, for programs that were written for them.

byzpy     ByzPy's classes, in one flat module
nodes     the mixins and actors of its nodes
"""
