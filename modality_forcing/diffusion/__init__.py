"""The method as pure functions of arrays: noise, losses, trajectories, sampler."""
