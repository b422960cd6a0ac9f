"""Nodes that learn together: their data, their model as one vector, and what one of them does alone."""
