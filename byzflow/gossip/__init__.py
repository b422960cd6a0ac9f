"""Gossip: nodes that talk to their neighbours, and the programs that they run.

effects    what a program may ask for
envelope   a message between nodes
mailbox    what a node was sent: bounded, checked, by type and round
drive      runs a program
"""
