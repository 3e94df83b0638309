"""What causes what: patching, paths, attribution, circuits, ablation, steering and interchange interventions."""
