"""Handwritten digits with Lightning (task.py) and Flower (client_app.py, server_app.py)."""
