"""From a job to trials: expansion, identity, phases, cost and memory estimates."""
