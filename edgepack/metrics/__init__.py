"""Statistics of the original's answers that quality and fidelity are measured against."""
