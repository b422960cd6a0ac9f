"""Nodes that learn together: a star with a centre, or any graph without one.

datasets, image_files, partitions   data, and who has which of it
models, schema, vector              a model, as one flat vector
learner, batches, training,         what one node does alone
optimizer, evaluation, randomness
nodes, learner_node                 what takes part: honest nodes and Byzantine ones
federated_node, federated_base      nodes that run code of their own, on threads
topology_manager, message, published, own_thread, loop_thread
learning_schemas                    such federations by their shape, and of models and data
publishing_learner, grouping, claims
federation                          nodes, a graph and a defence, run by rounds
parameter_server, peer_to_peer      the same in two lines; progress shows a bar
node_actor                          nodes on workers
applications, distributed           pipelines of a node, and nodes made of them
decentralized, router, contexts,    nodes that handle messages, each with its own scheduler
remote_context, decentralized_cluster
decentralized_cluster
report                              what a round was like

nodes_file, remote, presence        nodes that are processes: their file, what all make of it, who is there
remote_server, centre,              the processes themselves
remote_worker, remote_peer
report, summary, sinks, live_view   what a round was like, and a run; where it is written and shown
config, typed_file, red_config      one file that says it all
build, schemas                      from a configuration to a federation, by the name of its kind
"""
