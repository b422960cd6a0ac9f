"""Computation graphs: steps that depend on each other, and what starts each the moment its inputs are there.

calls        what a call may raise across threads
subtask      a unit of work for a worker, and the fan-out of many
operator     a step: computes here, or fans subtasks out over a pool
nodes        inputs, nodes, and the graph of them
messages     a mailbox in which each message is taken once
scheduler    runs a graph
builder      writes a graph as calls
session      runs graphs in the background
digest       by what a session keeps results
executor     single operators
aggregation  byzflow's own operators as steps
"""

from byzflow.graph.aggregation import RobustOp
from byzflow.graph.builder import GraphBuilder, LazyNode
from byzflow.graph.executor import OperatorExecutor, make_single_operator_graph, run_operator
from byzflow.graph.messages import Mailbox, Message
from byzflow.graph.nodes import ComputationGraph, GraphInput, GraphNode, MessageSource, graph_input
from byzflow.graph.operator import CallableOp, MessageTriggerOp, OpContext, Operator, RemoteCallableOp
from byzflow.graph.scheduler import MessageAwareNodeScheduler, NodeScheduler, ParallelScheduler
from byzflow.graph.session import ExecutionFuture, ExecutionSession
from byzflow.graph.subtask import SubTask

__all__ = [
    "CallableOp",
    "ComputationGraph",
    "ExecutionFuture",
    "ExecutionSession",
    "GraphBuilder",
    "GraphInput",
    "GraphNode",
    "LazyNode",
    "Mailbox",
    "Message",
    "MessageAwareNodeScheduler",
    "MessageSource",
    "MessageTriggerOp",
    "NodeScheduler",
    "OpContext",
    "Operator",
    "OperatorExecutor",
    "ParallelScheduler",
    "RemoteCallableOp",
    "RobustOp",
    "SubTask",
    "graph_input",
    "make_single_operator_graph",
    "run_operator",
]
