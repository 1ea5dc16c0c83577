"""The circuit that carries the object flaw: towers as columns, token roles as rows."""

from tables import HERE, write

import lvlm_interp as li

if __name__ == "__main__":
    circuit = li.circuits.Circuit.load(HERE / "data" / "circuit_object.json")
    f, low, high = circuit.note["faithfulness"]
    title = f"Faithfulness {f:.2f} [{low:.2f}, {high:.2f}]"
    write(li.plotting.circuit(circuit, label="edge score (logit)", title=title), "circuit_object")
