"""Gossip: nodes that talk to their neighbours, the graphs that join them, and the programs that they run.

topology     a graph as an immutable, versioned value
named        the graphs that have a name
sources      graphs from matrices, edges, files, networkx
varying      graphs that change with the round
weights      mixing weights
analysis     what a graph can bear
effects      what a program may ask for
door         what a program is given
programs     peer, server, worker
cluster      its members mix each round, its heads with others now and then
similarity   groups of nodes whose vectors point the same way
pace         which rounds may run
drive        runs a program
performer    performs its effects
defence      the robust rule of one node
witness      what an omniscient attacker sees
envelope     a message between nodes
mailbox      what a node was sent: bounded, by sender, type and round
network      how messages get there, in one process
tcp_network  the same for one node, over links
contract     what nodes on a network agree on, and how a message is checked
deadline     how long to wait for who is late
"""
