"""Handwritten digits with Lightning and Flower: task.py is Lightning's, client_app.py and server_app.py are Flower's."""
