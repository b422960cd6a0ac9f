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
report, summary, sinks, live_view   what a round was like, and a run; where it is written and shown
config, typed_file, red_config      one file that says it all
build, schemas                      from a configuration to a federation, by the name of its kind
"""
