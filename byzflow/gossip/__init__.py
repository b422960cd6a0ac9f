"""Gossip: nodes that talk to their neighbours, the graphs that join them, and the programs that they run.

topology   a graph as an immutable, versioned value
named      the graphs that a spec names
sources    graphs from matrices, edges, files, networkx
varying    graphs that change with the round
weights    mixing weights
analysis   what a graph bears
effects    what a program may ask for
door       what a program is given
programs   peer, server, worker
cluster    its members mix, and its heads with others; similarity: who is with whom
drive      runs a program
performer  performs its effects
mailbox    what a node was sent: bounded, checked, by type and round
envelope   a message between nodes
network    how it gets there, in one process
contract   what nodes on a network agree on, and how a message is checked
tcp_network  a network for one node, over links
deadline   how long to wait for who is late
pace       which rounds may run
defence    the robust rule of one node
witness    what an omniscient attacker sees
"""
