"""One function a figure; each takes domain objects and returns a matplotlib `Figure` that belongs to nobody else."""
