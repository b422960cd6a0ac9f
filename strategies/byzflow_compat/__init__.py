"""The names of other libraries, for programs that were written for them.

byzpy     ByzPy's classes, in one flat module
red       Red's classes, and the little of Ray that its programs call
nodes     the mixins and actors of its nodes
"""
