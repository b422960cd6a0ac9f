"""Nodes that learn together: a star with a centre, or any graph without one.

Data and models
    datasets, image_files       labelled data by name, and the files of MNIST and CIFAR-10
    partitions, batches         who has which samples, and in which order
    models, training            small models by name; the loss of one batch
    schema, vector              what a model's arrays look like; a model as one flat vector
    optimizer, evaluation       steps that all take alike; how good a model is
    randomness                  random numbers that depend on names and counts alone

Nodes
    nodes, learner_node         what takes part: honest nodes, and Byzantine ones
    learner                     what one node does alone, and all of its state
    node_actor                  nodes on workers
    virtual_node                a node that is only described
    applications, distributed   pipelines of a node, and nodes made of them

Federations
    federation                  nodes, a graph and a defence, run by rounds
    settings                    what cannot work is told before anything runs
    lives                       the nodes' programs, from their first round to their end
    member, observer            one participant; what a round tells of all of them
    ledgers                     each aggregation, written down so that it can be computed again
    parameter_server            a centre in two lines
    peer_to_peer                gossip in two lines; progress: training with a bar
    grouping, claims            clusters as rounds go by; how far claimed numbers of samples are believed

Their lives
    workers, resources          workers on which many nodes live; which share of a machine each gets
    supervision, detectors      what is done about workers that die, and when a silent one counts as dead
    churn, rewire               who comes and goes, and what becomes of the graph
    checkpoint, resume          a state as one file, and a federation that goes on from it
    versions                    what nodes publish, by number

Nodes that run code of their own
    federated_node              the participant; federated_base: a federation of them
    message, topology_manager   what they send, and the graph of mailboxes that it goes by
    learning_schemas            such federations by their shape
    published                   what one node publishes; publishing_learner: a learner whose models can be pulled
    own_thread, loop_thread     code that blocks on a thread of its own, an event loop on another

Nodes that handle messages
    decentralized               a node with a scheduler of its own; decentralized_cluster: several
    router, contexts            where its messages may go, and by what they travel
    remote_context              neighbours on other machines

Nodes that are processes
    nodes_file, remote          their file, and what all of them make of it
    remote_server, centre       the server, and the model that it keeps
    remote_worker, remote_peer  a worker of a server; a node without one
    presence                    who is there, who is not, and why

From one file, and what is shown
    config, typed_file          what the file says, and how it is read; red_config: Red's keys
    build, schemas              from a configuration to a federation, by the name of its kind
    report, summary             what a round was like, and a run
    sinks, live_view            where numbers go; a run as a terminal shows it
"""
