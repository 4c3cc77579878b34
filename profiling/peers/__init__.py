"""The libraries that are timed, one module each, run in processes of their own.

A peer is a class with these members; `profiling.peers.worker` calls them in this order.

``version() -> str``
    Name and version of what is timed.
``__init__(n_threads)``
    Imports the library and sets its threads. An ImportError means that it is not installed.
``load(case, parameters, x, y)``
    Takes the initial parameters and the data; whatever is kept in the library's own form is converted here.
``losses(n) -> list of float``
    From the initial parameters, the losses of the first `n` batches in order, one optimizer step each; dropout at
    rate 0.
``compile(n_steps)``
    Makes ready to time runs of `n_steps` steps. Compilation belongs here.
``run(n_steps) -> float``
    Trains on the first `n_steps` batches, once each, and returns the seconds it took.

and, but for those of `WITHOUT_INFERENCE`,

``outputs(n) -> list of list of float``
    What the network with the initial parameters gives for the first `n` samples: logits, or log-probabilities.
``infer(batch, n_calls) -> float``
    Computes the outputs of the first `batch` samples `n_calls` times, and returns the seconds it took.
"""

# What is timed -> the module and the class that time it. The order is the order of the table's columns.
PEERS = {
    "nbbp": ("profiling.peers.nbbp_peer", "Nbbp"),
    "pytorch": ("profiling.peers.pytorch_peer", "PyTorch"),
    "jax-jit": ("profiling.peers.jax_peer", "JaxJit"),
    "jax-scan": ("profiling.peers.jax_peer", "JaxScan"),
    "scikit-learn": ("profiling.peers.scikit_learn_peer", "ScikitLearn"),
    "tensorflow": ("profiling.peers.tensorflow_peer", "TensorFlow"),
    "numpy": ("profiling.peers.numpy_peer", "NumPy"),
    "pytorch-compile": ("profiling.peers.pytorch_peer", "PyTorchCompiled"),
}

#: Peers that have neither dropout nor normalisation.
WITHOUT_LAYERS = ("scikit-learn", "tensorflow", "numpy")
#: Peers that are a way to train only.
WITHOUT_INFERENCE = ("jax-scan",)
#: Peers that compile each network for so long that they are timed only where they are asked for.
SLOW_TO_START = ("pytorch-compile",)
