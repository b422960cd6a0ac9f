"""Training without a server: who hears whom, and how values are mixed.

    topology     the graph, as a versioned value; reads names, matrices, edge lists, networkx graphs
    named        the graphs that have a name
    sources      matrices, edge lists, files and networkx graphs as edges
    varying      graphs that change with the round
    weights      mixing weights W
    analysis     what a graph can bear: spectral gap, connectivity, Byzantine weight

The rules that mix are operators like any other: the plugin byzflow_gossip.
"""
