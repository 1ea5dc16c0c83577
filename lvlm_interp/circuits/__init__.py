"""Circuits: graphs of nodes and edges, their scores, and how much of the model they explain."""

from lvlm_interp.circuits.control import AgainstRandom, against_random
from lvlm_interp.circuits.evaluation import (
    CircuitCurve,
    circuit_metric,
    completeness,
    faithfulness,
    faithfulness_curve,
    minimality,
)
from lvlm_interp.circuits.graph import Circuit, Graph
from lvlm_interp.circuits.nodes import NodeScores, score_nodes
from lvlm_interp.circuits.scores import EdgeScores, score_edges
from lvlm_interp.circuits.selection import random_circuit, select_circuit

__all__ = [
    "AgainstRandom",
    "Circuit",
    "CircuitCurve",
    "EdgeScores",
    "Graph",
    "NodeScores",
    "against_random",
    "circuit_metric",
    "completeness",
    "faithfulness",
    "faithfulness_curve",
    "minimality",
    "random_circuit",
    "score_edges",
    "score_nodes",
    "select_circuit",
]
